/* AMX in software, for tests on a CPU without it: a handler of SIGILL decodes the instruction, computes it as Intel's
   SDM (volume 2) says, and goes on behind it. Tiles belong to the thread, as in the CPU.

   What the CPU would refuse (#UD, #GP: an operand of the wrong shape, tiles without a configuration) is recorded for
   amx_misuse() and skipped. Any other illegal instruction goes to whoever handled SIGILL before. */
#define _GNU_SOURCE
#include <immintrin.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64 };

enum kind { LDTILECFG, STTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILESTORED, TDPBSSD, TDPBSUD, TDPBUSD, TDPBUUD,
            TDPBF16PS, KINDS };

typedef struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t colsb[16];
  uint8_t rows[16];
} configuration;

static __thread struct {
  configuration shape;
  uint8_t data[TILES][ROWS][ROW_BYTES];
} tiles;

static atomic_ullong executed[KINDS];
static char misuse[200];
static struct sigaction before;
static atomic_int stepping;         /* whether to count every instruction */
static atomic_ullong instructions;  /* from ldtilecfg to tilerelease, of all threads */

enum { TRAP_FLAG = 0x100 };

static void refuse(const char *instruction, const char *why) {
  if (!misuse[0]) snprintf(misuse, sizeof misuse, "%s: %s", instruction, why);
}

/* -- operands ------------------------------------------------------------------------------------------------------ */

typedef struct {
  int opcode, pp, v;           /* pp: 0 none, 1 66, 2 F3, 3 F2 */
  int mod, reg, rm;            /* of the ModRM byte; registers of tiles have three bits */
  uintptr_t address, stride;   /* base + displacement; index * scale */
  int has_index;
  const uint8_t *end;
} instruction;

static uintptr_t general_register(const ucontext_t *context, int number) {
  static const int places[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                 REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return (uintptr_t)context->uc_mcontext.gregs[places[number]];
}

/* 1 where `code` holds an instruction of VEX.128.0F38.W0, decoded into `in`. */
static int decode(const uint8_t *code, const ucontext_t *context, instruction *in) {
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || code[2] & 0x84) return 0;
  int x = !(code[1] & 0x40) << 3, b = !(code[1] & 0x20) << 3;
  *in = (instruction){.opcode = code[3], .pp = code[2] & 3, .v = ~code[2] >> 3 & 15};
  in->mod = code[4] >> 6, in->reg = code[4] >> 3 & 7, in->rm = code[4] & 7;
  if (!(code[1] & 0x80)) return 0; /* there are eight tiles */
  const uint8_t *at = code + 5;
  if (in->mod != 3) {
    int base = in->rm | b, no_base = in->mod == 0 && in->rm == 5; /* relative to the next instruction */
    if (in->rm == 4) {
      int sib = *at++, index = (sib >> 3 & 7) | x;
      base = (sib & 7) | b;
      no_base = in->mod == 0 && (sib & 7) == 5;
      in->has_index = index != 4;
      if (in->has_index) in->stride = general_register(context, index) << (sib >> 6);
    }
    int32_t displacement = 0;
    if (in->mod == 1) displacement = (int8_t)*at++;
    if (in->mod == 2 || no_base) memcpy(&displacement, at, 4), at += 4;
    if (!no_base) in->address = general_register(context, base);
    if (no_base && in->rm == 5) in->address = (uintptr_t)at;
    in->address += (uintptr_t)(intptr_t)displacement;
  }
  in->end = at;
  return 1;
}

static enum kind kind_of(const instruction *in) {
  static const enum kind products[4] = {TDPBUUD, TDPBUSD, TDPBSUD, TDPBSSD};
  switch (in->opcode << 2 | in->pp) {
    case 0x49 << 2: return in->reg != 0 ? KINDS : in->mod != 3 ? LDTILECFG : in->rm == 0 ? TILERELEASE : KINDS;
    case 0x49 << 2 | 1: return in->mod != 3 && in->reg == 0 ? STTILECFG : KINDS;
    case 0x49 << 2 | 3: return in->mod == 3 && in->rm == 0 ? TILEZERO : KINDS;
    case 0x4b << 2 | 1: /* tileloaddt1 */
    case 0x4b << 2 | 3: return in->mod != 3 && in->rm == 4 ? TILELOADD : KINDS;
    case 0x4b << 2 | 2: return in->mod != 3 && in->rm == 4 ? TILESTORED : KINDS;
    case 0x5c << 2 | 2: return in->mod == 3 ? TDPBF16PS : KINDS;
  }
  return in->opcode == 0x5e && in->mod == 3 ? products[in->pp] : KINDS;
}

/* -- what the instructions do ---------------------------------------------------------------------------------------- */

static void configure(const configuration *wanted) {
  memset(&tiles, 0, sizeof tiles);
  if (wanted->palette == 0) return;
  if (wanted->palette != 1) return refuse("ldtilecfg", "palette must be 0 or 1");
  for (int i = 0; i < 14; i++)
    if (wanted->reserved[i]) return refuse("ldtilecfg", "reserved bytes must be 0");
  for (int i = 0; i < 16; i++) {
    int rows = wanted->rows[i], colsb = wanted->colsb[i];
    if (rows > ROWS || colsb > ROW_BYTES) return refuse("ldtilecfg", "a tile has at most 16 rows of 64 bytes");
    if (!rows != !colsb || (i >= TILES && rows)) return refuse("ldtilecfg", "rows without columns, or a ninth tile");
  }
  tiles.shape = *wanted;
}

static void load(int tile, uintptr_t from, uintptr_t stride) {
  memset(tiles.data[tile], 0, sizeof tiles.data[tile]);
  for (int row = 0; row < tiles.shape.rows[tile]; row++)
    memcpy(tiles.data[tile][row], (const void *)(from + (uintptr_t)row * stride), tiles.shape.colsb[tile]);
}

static void store(int tile, uintptr_t to, uintptr_t stride) {
  for (int row = 0; row < tiles.shape.rows[tile]; row++)
    memcpy((void *)(to + (uintptr_t)row * stride), tiles.data[tile][row], tiles.shape.colsb[tile]);
}

/* Sums wrap around in 32 bits. */
#define INTEGER_PRODUCT(name, left, right)                                                                       \
  static void name(uint32_t (*c)[16], const left (*a)[64], const right (*b)[64], int rows, int depth) {          \
    for (int m = 0; m < rows; m++)                                                                               \
      for (int k = 0; k < depth; k++)                                                                            \
        for (int n = 0; n < 16; n++)                                                                             \
          for (int i = 0; i < 4; i++) c[m][n] += (uint32_t)((int32_t)a[m][4 * k + i] * (int32_t)b[k][4 * n + i]); \
  }
INTEGER_PRODUCT(tdpbssd, int8_t, int8_t)
INTEGER_PRODUCT(tdpbsud, int8_t, uint8_t)
INTEGER_PRODUCT(tdpbusd, uint8_t, int8_t)
INTEGER_PRODUCT(tdpbuud, uint8_t, uint8_t)

static float widen(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

/* Even and odd products are summed apart, then together; subnormals count as nought. */
static void tdpbf16ps(float (*c)[16], const uint16_t (*a)[32], const uint16_t (*b)[32], int rows, int depth) {
  unsigned mode = _mm_getcsr();
  _mm_setcsr(0x1f80 | 0x8040); /* all exceptions masked, round to nearest even, FTZ, DAZ */
  for (int m = 0; m < rows; m++) {
    float sums[32] = {0};
    for (int k = 0; k < depth; k++)
      for (int n = 0; n < 32; n++)
        sums[n] = __builtin_fmaf(widen(a[m][2 * k + (n & 1)]), widen(b[k][n]), sums[n]);
    for (int n = 0; n < 16; n++) c[m][n] += sums[2 * n] + sums[2 * n + 1];
  }
  _mm_setcsr(mode);
}

static void multiply(enum kind kind, const char *name, int c, int a, int b) {
  const configuration *s = &tiles.shape;
  if (b >= TILES) return refuse(name, "there are eight tiles");
  if (a == b || a == c || b == c) return refuse(name, "its three tiles must differ");
  if (!s->rows[a] || !s->rows[b] || !s->rows[c]) return refuse(name, "a tile is not configured");
  if (s->colsb[a] % 4 || s->colsb[b] % 4 || s->rows[c] != s->rows[a] || s->colsb[a] != 4 * s->rows[b] ||
      s->colsb[c] != s->colsb[b])
    return refuse(name, "tile shapes do not fit");
  void *sums = tiles.data[c];
  const void *left = tiles.data[a], *right = tiles.data[b];
  int rows = s->rows[a], depth = s->rows[b];
  if (kind == TDPBSSD) tdpbssd(sums, left, right, rows, depth);
  if (kind == TDPBSUD) tdpbsud(sums, left, right, rows, depth);
  if (kind == TDPBUSD) tdpbusd(sums, left, right, rows, depth);
  if (kind == TDPBUUD) tdpbuud(sums, left, right, rows, depth);
  if (kind == TDPBF16PS) tdpbf16ps(sums, left, right, rows, depth);
}

static void execute(enum kind kind, const instruction *in) {
  static const char *const names[KINDS] = {"ldtilecfg", "sttilecfg", "tilerelease", "tilezero", "tileloadd",
                                           "tilestored", "tdpbssd", "tdpbsud", "tdpbusd", "tdpbuud", "tdpbf16ps"};
  atomic_fetch_add_explicit(&executed[kind], 1, memory_order_relaxed);
  if (kind == LDTILECFG) return configure((const configuration *)in->address);
  if (kind == TILERELEASE) return (void)memset(&tiles, 0, sizeof tiles);
  if (kind == STTILECFG) return (void)memcpy((void *)in->address, &tiles.shape, sizeof tiles.shape);
  if (tiles.shape.palette == 0) return refuse(names[kind], "tiles are not configured in this thread");
  if (kind >= TDPBSSD) return multiply(kind, names[kind], in->reg, in->rm, in->v);
  if (!tiles.shape.rows[in->reg]) return refuse(names[kind], "the tile is not configured");
  if (kind == TILEZERO) memset(tiles.data[in->reg], 0, sizeof tiles.data[in->reg]);
  if (kind == TILELOADD) load(in->reg, in->address, in->stride);
  if (kind == TILESTORED) store(in->reg, in->address, in->stride);
}

static void handle(int number, siginfo_t *info, void *opaque) {
  ucontext_t *context = opaque;
  instruction in;
  if (decode((const uint8_t *)context->uc_mcontext.gregs[REG_RIP], context, &in)) {
    enum kind kind = kind_of(&in);
    if (kind != KINDS) {
      execute(kind, &in);
      context->uc_mcontext.gregs[REG_RIP] = (greg_t)(uintptr_t)in.end;
      if (atomic_load(&stepping)) {
        atomic_fetch_add_explicit(&instructions, 1, memory_order_relaxed);
        if (kind == LDTILECFG) context->uc_mcontext.gregs[REG_EFL] |= TRAP_FLAG;
        if (kind == TILERELEASE) context->uc_mcontext.gregs[REG_EFL] &= ~TRAP_FLAG;
      }
      return;
    }
  }
  if (before.sa_flags & SA_SIGINFO)
    before.sa_sigaction(number, info, opaque);
  else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN)
    before.sa_handler(number);
  else
    signal(number, SIG_DFL); /* the instruction runs again, and ends the process */
}

/* The processor traps after each instruction that runs with TRAP_FLAG. */
static void count(int number, siginfo_t *info, void *opaque) {
  (void)number, (void)info, (void)opaque;
  atomic_fetch_add_explicit(&instructions, 1, memory_order_relaxed);
}

/* -- for the tests --------------------------------------------------------------------------------------------------- */

/* From now on the process has AMX. Returns 0, or -1 where the handler cannot be installed. */
int amx_start(void) {
  struct sigaction action = {.sa_flags = SA_SIGINFO};
  action.sa_sigaction = handle;
  return sigaction(SIGILL, &action, &before);
}

/* Count every instruction of threads that configure tiles from now on (about a microsecond each), or stop it. Returns
   the instructions so far. */
uint64_t amx_step(int on) {
  struct sigaction action = {.sa_flags = SA_SIGINFO};
  action.sa_sigaction = count;
  if (on) sigaction(SIGTRAP, &action, 0);
  atomic_store(&stepping, on);
  return atomic_exchange(&instructions, 0);
}

/* How often each instruction ran since the last call, in the order of `enum kind`. */
void amx_counts(uint64_t counts[KINDS]) {
  for (int i = 0; i < KINDS; i++) counts[i] = atomic_exchange(&executed[i], 0);
}

/* The first refused instruction since the last call, and why; empty where all was well. */
void amx_misuse(char message[sizeof misuse]) {
  memcpy(message, misuse, sizeof misuse);
  misuse[0] = 0;
}
