/* The hosted half of the runtime (Linux, pthreads): read and verify an artifact, load its code, run it. See graphc.h.

   File format, little endian: magic, u32 format version, u32 number of sections, sha256 of everything else, then per
   section {char name[16]; u64 offset; u64 size}, then the sections, each 64-byte aligned. container.py writes it. */
#define _GNU_SOURCE
#include "graphc.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "entropy.h"
#include "model.h"
#include "sha256.h"

#if defined(__x86_64__)
enum { MACHINE = EM_X86_64, RELATIVE = R_X86_64_RELATIVE };
#elif defined(__aarch64__)
enum { MACHINE = EM_AARCH64, RELATIVE = R_AARCH64_RELATIVE };
#else
#error "graphc's runtime knows x86-64 and arm64"
#endif

enum { FORMAT_VERSION = 1, HEADER_SIZE = 48, SECTION_SIZE = 32, ALIGNMENT = 64, WORKER_STACK = 8 << 20 };

/* A code section in memory. */
typedef struct {
  uint8_t *base;
  size_t span;
  size_t text_start, text_end; /* the executable segments */
  size_t symbols, num_symbols, strings, strings_size;
} code_image;

struct graphc_model {
  uint8_t *file;
  size_t file_size;
  uint8_t *decoded; /* weights that were coded */
  code_image code;
  const graphc_program *program;
  int32_t (*steps)(const graphc_frame *, int32_t, int32_t, uint64_t *);
  void (*worker)(void);
  void (*pool_stop)(void);
  graphc_frame frame;
  int num_dims; /* of all inputs and outputs together */
  pthread_t *workers;
  int num_workers;
  pthread_mutex_t lock;
  char error[GRAPHC_ERROR_SIZE];
};

/* Write an error message; always returns -1. */
__attribute__((format(printf, 2, 3))) static int fail(char *error, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error, GRAPHC_ERROR_SIZE, format, arguments);
  va_end(arguments);
  return -1;
}

/* -- file --------------------------------------------------------------------------------------------------------- */

static uint32_t read_u32(const uint8_t *p) {
  return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static uint64_t read_u64(const uint8_t *p) { return read_u32(p) | (uint64_t)read_u32(p + 4) << 32; }

static int map_file(const char *path, uint8_t **data, size_t *size, char *error) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return fail(error, "cannot open %s: %s", path, strerror(errno));
  struct stat status;
  void *memory = MAP_FAILED;
  if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size >= HEADER_SIZE)
    memory = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
  close(fd);
  if (memory == MAP_FAILED) return fail(error, "%s is not a graphc artifact: too short, or not a regular file", path);
  *data = memory;
  *size = (size_t)status.st_size;
  return 0;
}

static int verify(const uint8_t *file, size_t size, char *error) {
  if (memcmp(file, "\x89GRAPHC\n", 8)) return fail(error, "not a graphc artifact");
  uint32_t version = read_u32(file + 8);
  if (version != FORMAT_VERSION)
    return fail(error, "artifact has format version %u, this runtime reads %d: compile the model again", version,
                FORMAT_VERSION);
  sha256 hash = SHA256_START;
  uint8_t digest[32];
  sha256_update(&hash, file, 16);
  sha256_update(&hash, file + HEADER_SIZE, size - HEADER_SIZE);
  sha256_finish(&hash, digest);
  if (memcmp(digest, file + 16, 32)) return fail(error, "artifact is damaged: its content does not match its hash");
  return 0;
}

static int find_section(const uint8_t *file, size_t size, const char *name, const uint8_t **data, size_t *length,
                        char *error) {
  uint32_t count = read_u32(file + 12);
  if (count > (size - HEADER_SIZE) / SECTION_SIZE)
    return fail(error, "artifact is damaged: its section table is cut off");
  for (uint32_t i = 0; i < count; i++) {
    const uint8_t *entry = file + HEADER_SIZE + (size_t)i * SECTION_SIZE;
    if (strncmp((const char *)entry, name, 16)) continue;
    uint64_t offset = read_u64(entry + 16), bytes = read_u64(entry + 24);
    if (offset % ALIGNMENT || offset > size || bytes > size - offset)
      return fail(error, "artifact is damaged: section '%s' lies outside the file", name);
    *data = file + offset;
    *length = (size_t)bytes;
    return 0;
  }
  return fail(error, "artifact has no section '%s'", name);
}

/* -- code --------------------------------------------------------------------------------------------------------- */

static int inside(uint64_t start, uint64_t size, uint64_t span) { return start <= span && size <= span - start; }

/* Read where symbols, strings and relocations lie, and apply the latter. */
static int link_code(code_image *code, const Elf64_Phdr *dynamic, char *error) {
  uint64_t value[DT_NUM] = {0};
  for (uint64_t at = 0; at + sizeof(Elf64_Dyn) <= dynamic->p_memsz; at += sizeof(Elf64_Dyn)) {
    Elf64_Dyn entry;
    memcpy(&entry, code->base + dynamic->p_vaddr + at, sizeof entry);
    if (entry.d_tag == DT_NULL) break;
    if (entry.d_tag > 0 && entry.d_tag < DT_NUM) value[entry.d_tag] = entry.d_un.d_val;
  }
  if (value[DT_NEEDED] || value[DT_PLTRELSZ] || value[DT_RELSZ] || value[DT_INIT_ARRAYSZ] || value[DT_TEXTREL])
    return fail(error, "code section is not self-contained");
  uint32_t counts[2]; /* DT_HASH: number of buckets, number of symbols */
  if (!inside(value[DT_HASH], sizeof counts, code->span)) return fail(error, "code section has no symbols");
  memcpy(counts, code->base + value[DT_HASH], sizeof counts);
  code->symbols = value[DT_SYMTAB];
  code->num_symbols = counts[1];
  code->strings = value[DT_STRTAB];
  code->strings_size = value[DT_STRSZ];
  if (!inside(value[DT_SYMTAB], counts[1] * sizeof(Elf64_Sym), code->span) ||
      !inside(value[DT_STRTAB], value[DT_STRSZ], code->span) || !inside(value[DT_RELA], value[DT_RELASZ], code->span))
    return fail(error, "code section has tables outside of its segments");
  for (uint64_t at = 0; at + sizeof(Elf64_Rela) <= value[DT_RELASZ]; at += sizeof(Elf64_Rela)) {
    Elf64_Rela entry;
    memcpy(&entry, code->base + value[DT_RELA] + at, sizeof entry);
    if (ELF64_R_TYPE(entry.r_info) != RELATIVE || !inside(entry.r_offset, 8, code->span))
      return fail(error, "code section has a relocation that the runtime does not know");
    uint64_t address = (uint64_t)(uintptr_t)code->base + (uint64_t)entry.r_addend;
    memcpy(code->base + entry.r_offset, &address, sizeof address);
  }
  return 0;
}

/* Copy an ELF shared object's segments into memory, link them, and make each either writable or executable.
   On failure, code->base may be mapped; the caller releases it. */
static int load_code(const uint8_t *elf, size_t size, code_image *code, char *error) {
  Elf64_Ehdr header;
  if (size < sizeof header) return fail(error, "code section is cut off");
  memcpy(&header, elf, sizeof header);
  if (memcmp(header.e_ident, ELFMAG, SELFMAG) || header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_type != ET_DYN)
    return fail(error, "code section is not an ELF shared object");
  if (header.e_machine != MACHINE)
    return fail(error, "artifact was compiled for another architecture than this machine's");
  if (header.e_phentsize != sizeof(Elf64_Phdr) ||
      !inside(header.e_phoff, (uint64_t)header.e_phnum * sizeof(Elf64_Phdr), size))
    return fail(error, "code section has no program headers");

  enum { MAX_SEGMENTS = 16, MAX_SPAN = 1 << 30 };
  const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  Elf64_Phdr segments[MAX_SEGMENTS], dynamic = {0};
  int count = 0;
  uint64_t end = 0;
  for (int i = 0; i < header.e_phnum; i++) {
    Elf64_Phdr segment;
    memcpy(&segment, elf + header.e_phoff + (size_t)i * sizeof segment, sizeof segment);
    if (segment.p_type == PT_DYNAMIC) dynamic = segment;
    if (segment.p_type != PT_LOAD) continue;
    if (count == MAX_SEGMENTS || !inside(segment.p_vaddr, segment.p_memsz, MAX_SPAN) ||
        segment.p_filesz > segment.p_memsz || !inside(segment.p_offset, segment.p_filesz, size) ||
        segment.p_vaddr / page * page < end)
      return fail(error, "code section has segments that overlap or lie outside of it");
    if ((segment.p_flags & PF_W) && (segment.p_flags & PF_X)) return fail(error, "code section wants writable code");
    end = (segment.p_vaddr + segment.p_memsz + page - 1) / page * page;
    segments[count++] = segment;
  }
  if (!count || !dynamic.p_memsz || !inside(dynamic.p_vaddr, dynamic.p_memsz, end))
    return fail(error, "code section has nothing to load");

  void *memory = mmap(NULL, end, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return fail(error, "out of memory: the code needs %llu bytes", (unsigned long long)end);
  code->base = memory;
  code->span = end;
  for (int i = 0; i < count; i++)
    memcpy(code->base + segments[i].p_vaddr, elf + segments[i].p_offset, segments[i].p_filesz);
  if (link_code(code, &dynamic, error)) return -1;
  for (int i = 0; i < count; i++) {
    uint64_t start = segments[i].p_vaddr / page * page, stop = segments[i].p_vaddr + segments[i].p_memsz;
    int flags =
        PROT_READ | (segments[i].p_flags & PF_W ? PROT_WRITE : 0) | (segments[i].p_flags & PF_X ? PROT_EXEC : 0);
    if (mprotect(code->base + start, stop - start, flags))
      return fail(error, "this system does not allow to load code");
    if (segments[i].p_flags & PF_X) {
      code->text_start = segments[i].p_vaddr;
      code->text_end = stop;
    }
  }
  __builtin___clear_cache((char *)code->base, (char *)code->base + end);
  return 0;
}

/* Look up an exported function; `function` points to a function pointer. */
static int find_function(const code_image *code, const char *name, void *function, char *error) {
  size_t length = strlen(name) + 1;
  for (size_t i = 0; i < code->num_symbols; i++) {
    Elf64_Sym symbol;
    memcpy(&symbol, code->base + code->symbols + i * sizeof symbol, sizeof symbol);
    if (symbol.st_value < code->text_start || symbol.st_value >= code->text_end) continue;
    if (!inside(symbol.st_name, length, code->strings_size)) continue;
    if (memcmp(code->base + code->strings + symbol.st_name, name, length)) continue;
    void *address = code->base + symbol.st_value;
    memcpy(function, &address, sizeof address);
    return 0;
  }
  return fail(error, "code section does not export %s", name);
}

/* -- model -------------------------------------------------------------------------------------------------------- */

static void *enter_worker(void *model) {
  ((graphc_model *)model)->worker();
  return NULL;
}

static int start_threads(graphc_model *model, int threads, void (*pool_start)(int32_t), char *error) {
  if (threads <= 0) {
    cpu_set_t allowed;
    threads = sched_getaffinity(0, sizeof allowed, &allowed) ? 1 : CPU_COUNT(&allowed);
  }
  model->workers = calloc((size_t)threads, sizeof *model->workers);
  if (!model->workers) return fail(error, "out of memory");
  pool_start(threads);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, WORKER_STACK); /* kernels keep tiles on the stack; musl's default is 128 KiB */
  int status = 0;
  while (!status && model->num_workers < threads - 1) {
    status = pthread_create(&model->workers[model->num_workers], &attributes, enter_worker, model);
    model->num_workers += !status;
  }
  pthread_attr_destroy(&attributes);
  return status ? fail(error, "cannot start thread %d of %d: %s", model->num_workers + 2, threads, strerror(status))
                : 0;
}

static int check_program(graphc_model *model, size_t weights_size,
                         int32_t (*has_feature)(const char *, uint64_t, uint64_t), char *error) {
  const graphc_program *program = model->program;
  if (program->abi != GRAPHC_ABI)
    return fail(error, "artifact has ABI %u, this runtime %d: compile again", program->abi, GRAPHC_ABI);
  if (program->weights_bytes < 0 || (uint64_t)program->weights_bytes != weights_size || program->arena_bytes < 0 ||
      program->state_bytes < 0)
    return fail(error, "artifact is damaged: code and weights do not belong together");
  char missing[GRAPHC_ERROR_SIZE / 2] = "";
  for (const char *const *feature = program->features; *feature; feature++) {
    size_t used = strlen(missing);
    if (!has_feature(*feature, getauxval(AT_HWCAP), getauxval(AT_HWCAP2)))
      snprintf(missing + used, sizeof missing - used, " %s", *feature);
  }
  if (*missing) return fail(error, "this CPU lacks features that the artifact was compiled for:%s", missing);
  for (int i = 0; i < program->num_inputs + program->num_outputs; i++) {
    const graphc_tensor_info *info =
        i < program->num_inputs ? &program->inputs[i] : &program->outputs[i - program->num_inputs];
    if (info->rank < 0 || info->rank > GRAPHC_MAX_RANK)
      return fail(error, "tensor '%s' has rank %d, at most %d", info->name, info->rank, GRAPHC_MAX_RANK);
    model->num_dims += info->rank;
  }
  return 0;
}

static void *allocate(int64_t bytes) {
  void *memory = NULL;
  return posix_memalign(&memory, ALIGNMENT, bytes ? (size_t)bytes : ALIGNMENT) ? NULL : memory;
}

/* The weights as they lie in the file, or decoded once check_program found their size right. */
static int decode_weights(graphc_model *model, const uint8_t *code, size_t size, char *error) {
  model->decoded = allocate(model->program->weights_bytes);
  if (!model->decoded) return fail(error, "out of memory");
  if (entropy_decode(code, size, model->decoded, (uint64_t)model->program->weights_bytes))
    return fail(error, "artifact is damaged: its weights cannot be decoded");
  model->frame.weights = model->decoded;
  return 0;
}

static int start(graphc_model *model, const char *path, int threads, char *error) {
  const uint8_t *elf, *weights, *code;
  size_t elf_size, weights_size, code_size = 0;
  const graphc_program *(*program_get)(void);
  int32_t (*has_feature)(const char *, uint64_t, uint64_t);
  void (*pool_start)(int32_t);
  if (map_file(path, &model->file, &model->file_size, error) || verify(model->file, model->file_size, error) ||
      find_section(model->file, model->file_size, "code", &elf, &elf_size, error) ||
      (find_section(model->file, model->file_size, "coded_weights", &code, &code_size, error) &&
       find_section(model->file, model->file_size, "weights", &weights, &weights_size, error)) ||
      load_code(elf, elf_size, &model->code, error) ||
      find_function(&model->code, "graphc_program_get", &program_get, error) ||
      find_function(&model->code, "graphc_has_feature", &has_feature, error) ||
      find_function(&model->code, "graphc_steps", &model->steps, error) ||
      find_function(&model->code, "graphc_worker", &model->worker, error) ||
      find_function(&model->code, "graphc_pool_stop", &model->pool_stop, error) ||
      find_function(&model->code, "graphc_pool_start", &pool_start, error))
    return -1;
  model->program = program_get();
  if (code_size) weights_size = (size_t)entropy_size(code, code_size);
  if (check_program(model, weights_size, has_feature, error)) return -1;
  if (code_size && decode_weights(model, code, code_size, error)) return -1;
  if (!code_size) model->frame.weights = weights;
  model->frame.state = allocate(model->program->state_bytes);
  model->frame.arena = allocate(model->program->arena_bytes);
  if (!model->frame.state || !model->frame.arena) return fail(error, "out of memory");
  if (start_threads(model, threads, pool_start, error)) return -1;
  int failed = model->steps(&model->frame, 0, model->program->num_init_steps, NULL);
  return failed
             ? fail(error, "step '%s' failed while the weights were unpacked", model->program->steps[failed - 1].name)
             : 0;
}

graphc_model *graphc_load(const char *path, int threads, char error[GRAPHC_ERROR_SIZE]) {
  graphc_model *model = calloc(1, sizeof *model);
  if (!model) {
    fail(error, "out of memory");
    return NULL;
  }
  pthread_mutex_init(&model->lock, NULL);
  if (start(model, path, threads, error) == 0) return model;
  graphc_free(model);
  return NULL;
}

void graphc_free(graphc_model *model) {
  if (!model) return;
  if (model->num_workers) model->pool_stop();
  for (int i = 0; i < model->num_workers; i++) pthread_join(model->workers[i], NULL);
  free(model->workers);
  free(model->frame.state);
  free(model->frame.arena);
  free(model->decoded);
  if (model->code.base) munmap(model->code.base, model->code.span);
  if (model->file) munmap(model->file, model->file_size);
  pthread_mutex_destroy(&model->lock);
  free(model);
}

static int check_symbols(const graphc_model *model, const int64_t *symbols, char *error) {
  for (int i = 0; i < model->program->num_symbols; i++) {
    const graphc_symbol *symbol = &model->program->symbols[i];
    if (!symbols) return fail(error, "the model has %d dynamic sizes, none given", model->program->num_symbols);
    if (symbols[i] < symbol->minimum || symbols[i] > symbol->maximum)
      return fail(error, "size '%s' must lie between %lld and %lld, got %lld", symbol->name, (long long)symbol->minimum,
                  (long long)symbol->maximum, (long long)symbols[i]);
  }
  return 0;
}

int graphc_run(graphc_model *model, const void *const *inputs, const int64_t *symbols, void *const *outputs) {
  return graphc_profile(model, inputs, symbols, outputs, NULL);
}

int graphc_profile(graphc_model *model, const void *const *inputs, const int64_t *symbols, void *const *outputs,
                   uint64_t *nanoseconds) {
  const graphc_program *program = model->program;
  pthread_mutex_lock(&model->lock);
  int status = check_symbols(model, symbols, model->error);
  if (status == 0) {
    graphc_frame frame = model->frame;
    frame.inputs = (void *const *)inputs; /* kernels only read them */
    frame.outputs = outputs;
    frame.symbols = symbols;
    int failed = model->steps(&frame, program->num_init_steps, program->num_steps, nanoseconds);
    if (failed) status = fail(model->error, "step '%s' failed", program->steps[failed - 1].name);
  }
  pthread_mutex_unlock(&model->lock);
  return status;
}

const char *graphc_error(const graphc_model *model) { return model->error; }
int graphc_num_inputs(const graphc_model *model) { return model->program->num_inputs; }
int graphc_num_outputs(const graphc_model *model) { return model->program->num_outputs; }
int graphc_num_symbols(const graphc_model *model) { return model->program->num_symbols; }
int graphc_num_steps(const graphc_model *model) { return model->program->num_steps - model->program->num_init_steps; }

static int describe(graphc_model *model, int index, const int64_t *symbols, graphc_tensor *tensor) {
  static const uint8_t sizes[] = {8, 4, 2, 2, 8, 4, 2, 1, 1, 1}; /* in the order of enum graphc_dtype */
  const graphc_program *program = model->program;
  int64_t *dims = calloc((size_t)model->num_dims + 1, sizeof *dims), *own = dims;
  if (!dims) return -1;
  program->shapes(symbols, dims);
  for (int i = 0; i < index; i++)
    own += i < program->num_inputs ? program->inputs[i].rank : program->outputs[i - program->num_inputs].rank;
  const graphc_tensor_info *info =
      index < program->num_inputs ? &program->inputs[index] : &program->outputs[index - program->num_inputs];
  *tensor = (graphc_tensor){info->name, (enum graphc_dtype)info->dtype, info->rank, {0}, sizes[info->dtype]};
  for (int i = 0; i < info->rank; i++) tensor->bytes *= (size_t)(tensor->dims[i] = own[i]);
  free(dims);
  return 0;
}

int graphc_input(graphc_model *model, int index, const int64_t *symbols, graphc_tensor *tensor) {
  char error[GRAPHC_ERROR_SIZE];
  if (index < 0 || index >= model->program->num_inputs || check_symbols(model, symbols, error)) return -1;
  return describe(model, index, symbols, tensor);
}

int graphc_output(graphc_model *model, int index, const int64_t *symbols, graphc_tensor *tensor) {
  char error[GRAPHC_ERROR_SIZE];
  if (index < 0 || index >= model->program->num_outputs || check_symbols(model, symbols, error)) return -1;
  return describe(model, model->program->num_inputs + index, symbols, tensor);
}

int graphc_symbol_range(const graphc_model *model, int index, const char **name, int64_t *minimum, int64_t *maximum) {
  if (index < 0 || index >= model->program->num_symbols) return -1;
  const graphc_symbol *symbol = &model->program->symbols[index];
  *name = symbol->name;
  *minimum = symbol->minimum;
  *maximum = symbol->maximum;
  return 0;
}

const char *graphc_step_name(const graphc_model *model, int index) {
  if (index < 0 || index >= graphc_num_steps(model)) return NULL;
  return model->program->steps[model->program->num_init_steps + index].name;
}
