/* Damage an artifact in many ways and load it: the loader must refuse or accept, never crash. Prints the counts.

   damage model.graphc scratch-file rounds */
#include "../../graphc/runtime/graphc.c"

static uint64_t random_state = 1;

static uint64_t draw(uint64_t below) { /* xorshift64 */
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state % below;
}

static void write_file(const char *path, const uint8_t *data, size_t size) {
  FILE *file = fopen(path, "wb");
  if (!file || fwrite(data, 1, size, file) != size || fclose(file)) exit(2);
}

static void rehash(uint8_t *file, size_t size) {
  sha256 hash = SHA256_START;
  sha256_update(&hash, file, 16);
  sha256_update(&hash, file + HEADER_SIZE, size - HEADER_SIZE);
  sha256_finish(&hash, file + 16);
}

/* A value that is likely to hurt in place of 1 to 8 bytes at `at`. */
static void hurt(uint8_t *at, size_t room) {
  static const uint64_t values[] = {0,          1,          8,          64,         4096,  0x7fffffff,
                                    0x80000000, 0xffffffff, 1ull << 40, 1ull << 63, ~0ull, ~7ull};
  uint64_t value = draw(3) ? values[draw(sizeof values / sizeof *values)] : draw(UINT64_MAX);
  size_t size = (size_t)1 << draw(4);
  memcpy(at, &value, size < room ? size : room);
}

/* With the hash put right, as far as loading goes without running the code. */
static int parse(const uint8_t *file, size_t size) {
  const uint8_t *section;
  size_t length;
  char error[GRAPHC_ERROR_SIZE] = "";
  code_image code = {0};
  void (*function)(void);
  int status = verify(file, size, error) || find_section(file, size, "weights", &section, &length, error) ||
               find_section(file, size, "code", &section, &length, error) || load_code(section, length, &code, error) ||
               find_function(&code, "graphc_steps", &function, error);
  if (code.base) munmap(code.base, code.span);
  if (status && !*error) exit(3);
  return !status;
}

int main(int count, char **arguments) {
  if (count != 4) return 2;
  uint8_t *good;
  size_t size, elf_size;
  const uint8_t *elf;
  char error[GRAPHC_ERROR_SIZE];
  if (map_file(arguments[1], &good, &size, error) || find_section(good, size, "code", &elf, &elf_size, error)) return 2;
  const size_t elf_at = (size_t)(elf - good);
  int rounds = atoi(arguments[3]), accepted = 0, refused = 0;

  for (int i = 0; i < rounds; i++) { /* as a disk or a network would: the hash finds it */
    uint8_t *bad = malloc(size);
    memcpy(bad, good, size);
    size_t length = draw(2) ? size : draw(size);
    if (length == size) bad[draw(size)] ^= (uint8_t)(1 + draw(255));
    write_file(arguments[2], bad, length);
    *error = 0;
    graphc_model *model = graphc_load(arguments[2], 2, error);
    if (model || !*error) return 4;
    free(bad);
  }
  for (int i = 0; i < rounds * 20; i++) { /* with a hash that matches */
    size_t length = draw(8) ? size : HEADER_SIZE + draw(size - HEADER_SIZE);
    uint8_t *bad = malloc(length); /* of just this size: the sanitizer sees the end */
    memcpy(bad, good, length);
    for (uint64_t changes = 1 + draw(3); changes; changes--) {
      size_t places[] = {HEADER_SIZE + draw(6 * SECTION_SIZE), elf_at + draw(64 + 9 * 56), elf_at + draw(elf_size)};
      size_t place = places[draw(3)];
      if (place < length) hurt(bad + place, length - place);
    }
    if (length >= HEADER_SIZE) rehash(bad, length);
    if (parse(bad, length))
      accepted++;
    else
      refused++;
    free(bad);
  }
  munmap(good, size);
  printf("%d %d\n", accepted, refused);
  return 0;
}
