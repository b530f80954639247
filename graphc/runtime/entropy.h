/* Decodes what graphc/entropy.py writes (its layout stands there): interleaved range asymmetric numeral systems. */
#ifndef GRAPHC_ENTROPY_H
#define GRAPHC_ENTROPY_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ENTROPY_HEADER = 12, ENTROPY_BITS = 12, ENTROPY_TOTAL = 1 << ENTROPY_BITS, ENTROPY_BLOCK = 1 << 12 };

/* By the low bits of a state: the byte, its frequency, and the place inside of it. */
typedef struct {
  uint16_t frequency, offset;
  uint8_t byte;
} entropy_slot;

static uint32_t entropy_u16(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8; }

/* How many bytes were coded. */
static uint64_t entropy_size(const uint8_t *code, size_t size) {
  uint64_t coded = 0;
  for (int i = 0; size >= ENTROPY_HEADER && i < 8; i++) coded |= (uint64_t)code[i] << 8 * i;
  return coded;
}

/* One table at `at`; returns where the next thing starts, or NULL. */
static const uint8_t *entropy_table(const uint8_t *at, const uint8_t *end, entropy_slot *slots) {
  if (end - at < 32) return NULL;
  const uint8_t *present = at;
  uint32_t first = 0;
  at += 32;
  for (int byte = 0; byte < 256; byte++) {
    if (!(present[byte / 8] >> byte % 8 & 1)) continue;
    if (end - at < 2) return NULL; /* something always follows a table */
    uint32_t frequency = *at++;
    if (frequency >= 128) frequency = (frequency & 127) | (uint32_t)*at++ << 7;
    if (!frequency || frequency > ENTROPY_TOTAL - first) return NULL;
    for (uint32_t i = 0; i < frequency; i++)
      slots[first + i] = (entropy_slot){(uint16_t)frequency, (uint16_t)i, (uint8_t)byte};
    first += frequency;
  }
  return first == ENTROPY_TOTAL ? at : NULL;
}

/* The blocks, `choices` being what they chose and `words` what follows the states; nonzero where something is wrong. */
static int entropy_blocks(const uint8_t *choices, const uint8_t *words, const uint8_t *end, uint32_t *states,
                          uint32_t lanes, const entropy_slot *slots, uint8_t *data, uint64_t size) {
  const uint64_t whole = (size + lanes - 1) / lanes * lanes;
  uint32_t places = 1;
  for (uint64_t i = 0; i < whole; i++) {
    if (i % ENTROPY_BLOCK == 0) {
      if (i) choices += 1 + places;
      places = choices[0];
    }
    uint32_t *state = &states[i % lanes], table = choices[1 + i % places];
    const entropy_slot slot = slots[(size_t)table * ENTROPY_TOTAL + (*state & (ENTROPY_TOTAL - 1))];
    if (i < size) data[i] = slot.byte;
    *state = slot.frequency * (*state >> ENTROPY_BITS) + slot.offset;
    if (*state >> 16) continue;
    if (end - words < 2) return -1;
    *state = *state << 16 | entropy_u16(words);
    words += 2;
  }
  for (uint32_t lane = 0; lane < lanes; lane++)
    if (states[lane] != 1u << 16) return -1;
  return words != end;
}

/* Decode into `data`, of just the coded size; nonzero where the code is damaged or memory is short. */
static int entropy_decode(const uint8_t *code, size_t code_size, uint8_t *data, uint64_t size) {
  if (code_size < ENTROPY_HEADER || entropy_size(code, code_size) != size || size > UINT64_MAX / 2) return -1;
  const uint8_t *end = code + code_size, *at = code + ENTROPY_HEADER;
  const uint32_t lanes = entropy_u16(code + 8), count = entropy_u16(code + 10);
  if (lanes < 4 || lanes > 1024 || lanes & (lanes - 1) || count > 256) return -1;
  entropy_slot *slots = malloc((count + !count) * ENTROPY_TOTAL * sizeof *slots);
  uint32_t *states = malloc(lanes * sizeof *states);
  int status = !slots || !states;
  for (uint32_t table = 0; !status && table < count; table++) {
    at = entropy_table(at, end, slots + (size_t)table * ENTROPY_TOTAL);
    status = !at;
  }
  const uint8_t *choices = at;
  const uint64_t blocks = size ? (size - 1) / ENTROPY_BLOCK + 1 : 0;
  for (uint64_t block = 0; !status && block < blocks; block++) {
    uint32_t places = at == end ? 0 : *at;
    if ((places != 1 && places != 2 && places != 4) || (size_t)(end - at) < 1 + places) status = -1;
    for (uint32_t i = 0; !status && i < places; i++) status = at[1 + i] >= count;
    if (!status) at += 1 + places;
  }
  if (!status && (size_t)(end - at) < 4 * (size_t)lanes) status = -1;
  for (uint32_t lane = 0; !status && lane < lanes; lane++)
    states[lane] = entropy_u16(at + 4 * lane) | entropy_u16(at + 4 * lane + 2) << 16;
  if (!status) status = entropy_blocks(choices, at + 4 * lanes, end, states, lanes, slots, data, size);
  free(slots);
  free(states);
  return status;
}

#endif
