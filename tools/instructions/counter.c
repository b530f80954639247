/* Counts the A64 instructions that a program executes under qemu's user-mode emulation: a TCG plugin.

   qemu-aarch64 -plugin file=counter.so,out=FILE,marker=N program

   Whenever the program makes system call N, and when it ends, one line of JSON goes to FILE: how many instructions have
   been executed since the line before, by class, and of these the block of straight code that took most of them. The
   figures are exact and the same in every run of a program that does the same: no clock is involved. One thread.

   The declarations are those of qemu-plugin.h, API version 1 (qemu 6.0 to 8.2), which Debian's packages leave out. */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct qemu_info_t qemu_info_t;
typedef void (*translated)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*called)(qemu_plugin_id_t, unsigned cpu, int64_t number, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                       uint64_t, uint64_t, uint64_t);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, called);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int add_u64, void *counter, uint64_t by);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

enum class { MULTIPLY_ACCUMULATE, VECTOR, LOAD, STORE, BRANCH, SCALAR, CLASSES };
static const char *const names[CLASSES] = {"multiply_accumulate", "vector", "load", "store", "branch", "scalar"};

/* Vector multiply-adds: value and mask of the encoding (Arm ARM, C4.1.96 "Data Processing -- Scalar FP and SIMD"). */
static const struct {
  uint32_t value, mask;
} multiply_adds[] = {
    {0x0e809400, 0x9fe0fc00}, {0x0f80e000, 0x9fc0f400}, /* sdot, udot; by element (bit 29: unsigned) */
    {0x0e809c00, 0xbfe0fc00}, {0x0f00f000, 0xbf40f400}, /* usdot; usdot, sudot by element */
    {0x4e80a400, 0xdfe0fc00}, {0x4e80ac00, 0xffe0fc00}, /* smmla, ummla; usmmla */
    {0x6e40ec00, 0xffe0fc00}, {0x2e40fc00, 0xbfe0fc00}, /* bfmmla; bfdot */
    {0x0f40f000, 0xbfc0f400},                           /* bfdot by element */
    {0x0e20cc00, 0xbf20fc00}, {0x0f801000, 0xbf80b400}, /* fmla, fmls; by element */
    {0x0e400c00, 0xbf60fc00}, {0x0f001000, 0xbfc0b400}, /* the same in half precision */
    {0x0e209400, 0x9f20fc00}, {0x2f000000, 0xbf00b400}, /* mla, mls; by element */
    {0x0e208000, 0x9f20dc00}, {0x0f002000, 0x9f00b400}, /* smlal, umlal and their subtractions; by element */
    {0x2e40fc00, 0xbf60fc00}, {0x0fc0f000, 0xbfc0f400}, /* bfmlal; by element */
};

static enum class class_of(uint32_t code) {
  if ((code & 0x0a000000) == 0x08000000) {
    bool signed_load = (code & 0x3cc00000) == 0x38800000; /* ldrsb, ldrsh, ldrsw into 64 bits */
    bool literal = (code & 0x3b000000) == 0x18000000;
    return code & 0x00400000 || signed_load || literal ? LOAD : STORE;
  }
  if ((code & 0x1c000000) == 0x14000000) return BRANCH;
  if ((code & 0x0e000000) == 0x0e000000) {
    for (size_t i = 0; i < sizeof multiply_adds / sizeof *multiply_adds; i++)
      if ((code & multiply_adds[i].mask) == multiply_adds[i].value) return MULTIPLY_ACCUMULATE;
    return VECTOR;
  }
  return (code & 0x1e000000) == 0x04000000 ? VECTOR /* SVE */ : SCALAR;
}

struct block {
  struct block *next;
  uint64_t executions, reported, address;
  uint32_t length, of_class[CLASSES];
};

static struct block *blocks;
static int64_t marker = -1;
static FILE *out;

static void translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
  (void)id;
  struct block *block = calloc(1, sizeof *block);
  if (!block) abort();
  block->next = blocks;
  blocks = block;
  block->address = qemu_plugin_tb_vaddr(tb);
  block->length = (uint32_t)qemu_plugin_tb_n_insns(tb);
  for (size_t i = 0; i < block->length; i++) {
    uint32_t code;
    memcpy(&code, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), sizeof code);
    block->of_class[class_of(code)]++;
  }
  qemu_plugin_register_vcpu_tb_exec_inline(tb, 0, &block->executions, 1);
}

static void write_counts(const char *label, uint64_t instructions, const uint64_t *of_class) {
  fprintf(out, "\"%s\": {\"instructions\": %" PRIu64, label, instructions);
  for (int c = 0; c < CLASSES; c++) fprintf(out, ", \"%s\": %" PRIu64, names[c], of_class[c]);
  fprintf(out, "}");
}

static void report(void) {
  uint64_t instructions = 0, of_class[CLASSES] = {0}, most = 0, executions = 0;
  const struct block *hottest = NULL;
  for (struct block *block = blocks; block; block = block->next) {
    uint64_t times = block->executions - block->reported;
    if (!times) continue;
    block->reported = block->executions;
    instructions += times * block->length;
    for (int c = 0; c < CLASSES; c++) of_class[c] += times * block->of_class[c];
    if (times * block->length > most) most = times * block->length, executions = times, hottest = block;
  }
  fprintf(out, "{");
  write_counts("total", instructions, of_class);
  if (hottest) {
    uint64_t once[CLASSES];
    for (int c = 0; c < CLASSES; c++) once[c] = hottest->of_class[c];
    fprintf(out, ", \"executions\": %" PRIu64 ", \"address\": %" PRIu64 ", ", executions, hottest->address);
    write_counts("hottest", hottest->length, once);
  }
  fprintf(out, "}\n");
  fflush(out);
}

static void call(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                 uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
  (void)id, (void)cpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  if (number == marker) report();
}

static void finish(qemu_plugin_id_t id, void *data) {
  (void)id, (void)data;
  report();
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int count, char **arguments) {
  (void)info;
  for (int i = 0; i < count; i++) {
    if (!strncmp(arguments[i], "out=", 4)) out = fopen(arguments[i] + 4, "w");
    if (!strncmp(arguments[i], "marker=", 7)) marker = atoll(arguments[i] + 7);
  }
  if (!out) return fputs("counter: cannot write out=FILE\n", stderr), 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
  qemu_plugin_register_vcpu_syscall_cb(id, call);
  qemu_plugin_register_atexit_cb(id, finish, NULL);
  return 0;
}
