/* The freestanding half of the runtime: thread pool, step loop, CPU features, and the memory functions that compilers
   call. It is linked into each code section; see model.h. */
#include "model.h"

#include <stdatomic.h>

/* -- system calls ------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
enum { SYS_CLOCK_GETTIME = 228, SYS_FUTEX = 202, SYS_ARCH_PRCTL = 158 };

static long system_call(long number, long a, long b, long c, long d) {
  register long r10 __asm__("r10") = d;
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
  return result;
}

static void relax(void) { __asm__ volatile("pause"); }
#elif defined(__aarch64__)
enum { SYS_CLOCK_GETTIME = 113, SYS_FUTEX = 98 };

static long system_call(long number, long a, long b, long c, long d) {
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
  return x0;
}

/* `yield` does nothing on cores without SMT; `isb` waits about as long as x86's pause. */
static void relax(void) { __asm__ volatile("isb"); }
#else
#error "graphc's runtime knows x86-64 and arm64"
#endif

enum { FUTEX_WAIT_PRIVATE = 128, FUTEX_WAKE_PRIVATE = 129 };

/* Sleep while *word == expected, until woken. */
static void futex_wait(atomic_uint *word, unsigned expected) {
  system_call(SYS_FUTEX, (long)word, FUTEX_WAIT_PRIVATE, (long)expected, 0);
}

static void futex_wake(atomic_uint *word, int count) {
  system_call(SYS_FUTEX, (long)word, FUTEX_WAKE_PRIVATE, count, 0);
}

/* -- AMX tiles -----------------------------------------------------------------------------------------------------

   All kernels use the same configuration, which each thread loads before its first task and gives back when it sleeps
   or the run ends: tiles in use make context switches dearer and keep an idle core from deep sleep. */

#if defined(__x86_64__)
static void configure_tiles(void) {
  static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } configuration = {.palette = 1,
                     .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                     .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
  if (graphc_the_program.tiles) __asm__ volatile("ldtilecfg %0" : : "m"(configuration));
}

static void release_tiles(void) {
  if (graphc_the_program.tiles) __asm__ volatile("tilerelease");
}
#else
static void configure_tiles(void) {}
static void release_tiles(void) {}
#endif

/* -- thread pool --------------------------------------------------------------------------------------------------

   One job at a time. `unclaimed` counts its tasks down: whoever (worker or launcher) lowers it from n to n - 1 runs
   task n - 1. A claim can only succeed while the launcher waits, so the job's fields hold still for whoever made one,
   and a worker that comes late finds nothing to claim. The launcher claims too, so a job ends even with no workers. */

enum { SPINS = 4000 }; /* 50-100 us: longer than the gap between two kernels, far shorter than a time slice */

typedef struct {
  void *sync_handle;
  int32_t num_task;
} parallel_env; /* TVMParallelGroupEnv */

typedef int (*parallel_task)(int task_id, parallel_env *env, void *closure);

static struct {
  /* written by each launch */
  _Alignas(64) atomic_uint epoch; /* futex: workers sleep on it */
  atomic_uint sleeping, stopping;
  /* the job; the fields are published by `unclaimed` */
  _Alignas(64) atomic_int unclaimed;
  parallel_task task;
  void *closure;
  parallel_env env;
  /* written as tasks end */
  _Alignas(64) atomic_uint unfinished; /* futex: the launcher sleeps on it */
  atomic_uint launcher_sleeps;
  atomic_int error;
  /* of the launching thread alone */
  _Alignas(64) int32_t num_threads;
} pool;
static atomic_int in_job; /* a job runs: a launch now comes from inside one of its tasks */

static void run_tasks(void) {
  int count = atomic_load(&pool.unclaimed);
  while (count > 0) {
    if (!atomic_compare_exchange_weak(&pool.unclaimed, &count, count - 1)) continue;
    int error = pool.task(count - 1, &pool.env, pool.closure);
    if (error) atomic_store(&pool.error, error);
    if (atomic_fetch_sub(&pool.unfinished, 1) == 1 && atomic_load(&pool.launcher_sleeps))
      futex_wake(&pool.unfinished, 1);
    count = atomic_load(&pool.unclaimed);
  }
}

static int launch(parallel_task task, void *closure, int num_task) {
  if (num_task == 1 || pool.num_threads <= 1 || atomic_load(&in_job)) {
    parallel_env env = {0, num_task ? num_task : 1};
    int error = 0;
    for (int i = 0; i < env.num_task && !error; i++) error = task(i, &env, closure);
    return error;
  }
  if (num_task <= 0) num_task = pool.num_threads;
  atomic_store(&in_job, 1);
  pool.task = task;
  pool.closure = closure;
  pool.env = (parallel_env){0, num_task};
  atomic_store(&pool.error, 0);
  atomic_store(&pool.unfinished, (unsigned)num_task);
  atomic_store(&pool.unclaimed, num_task);
  /* A worker counts itself as sleeping, then sleeps only if epoch has not moved: one of the two sees the other. */
  atomic_fetch_add(&pool.epoch, 1);
  if (atomic_load(&pool.sleeping)) futex_wake(&pool.epoch, num_task - 1);
  run_tasks();
  unsigned left = atomic_load(&pool.unfinished);
  for (int spin = 0; left && spin < SPINS; spin++) {
    relax();
    left = atomic_load(&pool.unfinished);
  }
  if (left) {
    atomic_store(&pool.launcher_sleeps, 1);
    while ((left = atomic_load(&pool.unfinished))) futex_wait(&pool.unfinished, left);
    atomic_store(&pool.launcher_sleeps, 0);
  }
  atomic_store(&in_job, 0);
  return atomic_load(&pool.error);
}

/* TVM's objects define this pointer weakly and call through it. */
__attribute__((visibility("hidden"))) extern int (*__TVMBackendParallelLaunch)(parallel_task, void *, int);
int (*__TVMBackendParallelLaunch)(parallel_task, void *, int) = launch;

void graphc_pool_start(int32_t num_threads) {
  atomic_store(&pool.stopping, 0);
  pool.num_threads = num_threads;
}

void graphc_worker(void) {
  configure_tiles();
  for (;;) {
    unsigned seen = atomic_load(&pool.epoch);
    if (atomic_load(&pool.stopping)) break;
    run_tasks();
    for (int spin = 0; spin < SPINS && atomic_load(&pool.epoch) == seen; spin++) relax();
    if (atomic_load(&pool.epoch) != seen) continue;
    atomic_fetch_add(&pool.sleeping, 1);
    release_tiles();
    futex_wait(&pool.epoch, seen);
    configure_tiles();
    atomic_fetch_sub(&pool.sleeping, 1);
  }
  release_tiles();
}

void graphc_pool_stop(void) {
  pool.num_threads = 1;
  atomic_store(&pool.stopping, 1);
  atomic_fetch_add(&pool.epoch, 1);
  futex_wake(&pool.epoch, INT32_MAX);
}

/* -- program ------------------------------------------------------------------------------------------------------ */

const graphc_program *graphc_program_get(void) { return &graphc_the_program; }

static uint64_t now(void) {
  struct {
    int64_t seconds, nanoseconds;
  } time = {0, 0};
  system_call(SYS_CLOCK_GETTIME, 1 /* CLOCK_MONOTONIC */, (long)&time, 0, 0);
  return (uint64_t)time.seconds * 1000000000u + (uint64_t)time.nanoseconds;
}

int32_t graphc_steps(const graphc_frame *frame, int32_t first, int32_t last, uint64_t *nanoseconds) {
  int32_t failed = 0;
  configure_tiles();
  for (int32_t i = first; i < last && !failed; i++) {
    uint64_t start = nanoseconds ? now() : 0;
    if (graphc_the_program.steps[i].run(frame)) failed = i + 1;
    if (nanoseconds) nanoseconds[i - first] = now() - start;
  }
  release_tiles();
  return failed;
}

/* -- CPU features ------------------------------------------------------------------------------------------------- */

static int same(const char *a, const char *b) {
  while (*a && *a == *b) a++, b++;
  return *a == *b;
}

#if defined(__x86_64__)
enum { EAX, EBX, ECX, EDX };
enum { NONE = 0, YMM = 0x6, ZMM = 0xe6, TILE = 0x60000 }; /* register state that the system must save, as in XCR0 */

/* Intel SDM volume 2, CPUID. */
static const struct {
  char name[12];
  unsigned leaf, subleaf;
  int place, bit;
  unsigned state;
} features[] = {
    {"sse3", 1, 0, ECX, 0, NONE},
    {"ssse3", 1, 0, ECX, 9, NONE},
    {"fma", 1, 0, ECX, 12, YMM},
    {"sse4.1", 1, 0, ECX, 19, NONE},
    {"sse4.2", 1, 0, ECX, 20, NONE},
    {"movbe", 1, 0, ECX, 22, NONE},
    {"popcnt", 1, 0, ECX, 23, NONE},
    {"avx", 1, 0, ECX, 28, YMM},
    {"f16c", 1, 0, ECX, 29, YMM},
    {"bmi", 7, 0, EBX, 3, NONE},
    {"avx2", 7, 0, EBX, 5, YMM},
    {"bmi2", 7, 0, EBX, 8, NONE},
    {"avx512f", 7, 0, EBX, 16, ZMM},
    {"avx512dq", 7, 0, EBX, 17, ZMM},
    {"avx512cd", 7, 0, EBX, 28, ZMM},
    {"avx512bw", 7, 0, EBX, 30, ZMM},
    {"avx512vl", 7, 0, EBX, 31, ZMM},
    {"avx512vbmi", 7, 0, ECX, 1, ZMM},
    {"avx512vnni", 7, 0, ECX, 11, ZMM},
    {"amx-bf16", 7, 0, EDX, 22, TILE},
    {"amx-tile", 7, 0, EDX, 24, TILE},
    {"amx-int8", 7, 0, EDX, 25, TILE},
    {"avxvnni", 7, 1, EAX, 4, YMM},
    {"avx512bf16", 7, 1, EAX, 5, ZMM},
    {"lzcnt", 0x80000001, 0, ECX, 5, NONE},
};

static void cpuid(unsigned leaf, unsigned subleaf, unsigned out[4]) {
  __asm__ volatile("cpuid" : "=a"(out[EAX]), "=b"(out[EBX]), "=c"(out[ECX]), "=d"(out[EDX]) : "a"(leaf), "c"(subleaf));
}

/* Whether the system saves these registers. Linux gives AMX's tiles only to a process that asks. */
static int saves(unsigned state) {
  unsigned out[4], low, high;
  cpuid(1, 0, out);
  if (!(out[ECX] >> 27 & 1)) return 0; /* OSXSAVE */
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & state) != state) return 0;
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
  return state != TILE || !system_call(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA, 0, 0);
}

int32_t graphc_has_feature(const char *name, uint64_t hwcap, uint64_t hwcap2) {
  (void)hwcap, (void)hwcap2;
  for (unsigned i = 0; i < sizeof features / sizeof *features; i++) {
    if (!same(features[i].name, name)) continue;
    unsigned out[4];
    cpuid(features[i].leaf & 0x80000000, 0, out);
    if (out[EAX] < features[i].leaf) return 0;
    cpuid(features[i].leaf, features[i].subleaf, out);
    return (out[features[i].place] >> features[i].bit & 1) && (!features[i].state || saves(features[i].state));
  }
  return 0;
}
#else
/* Linux, Documentation/arch/arm64/elf_hwcaps.rst. */
static const struct {
  char name[12];
  int word, bit;
} features[] = {
    {"neon", 0, 1}, {"fullfp16", 0, 10}, {"dotprod", 0, 20}, {"i8mm", 1, 13}, {"bf16", 1, 14},
};

int32_t graphc_has_feature(const char *name, uint64_t hwcap, uint64_t hwcap2) {
  for (unsigned i = 0; i < sizeof features / sizeof *features; i++)
    if (same(features[i].name, name)) return (int32_t)((features[i].word ? hwcap2 : hwcap) >> features[i].bit & 1);
  return 0;
}
#endif

/* -- memory functions: compilers call them even in freestanding code ----------------------------------------------- */

typedef uint8_t block __attribute__((vector_size(16), aligned(1), may_alias));

__attribute__((visibility("hidden"))) void *memmove(void *to, const void *from, size_t size);
__attribute__((visibility("hidden"))) void *memcpy(void *to, const void *from, size_t size);
__attribute__((visibility("hidden"))) void *memset(void *to, int value, size_t size);

void *memmove(void *to, const void *from, size_t size) {
  uint8_t *d = to;
  const uint8_t *s = from;
  size_t i = 0;
  if ((uintptr_t)d - (uintptr_t)s >= size) { /* upwards is safe: d does not lie inside [s, s + size) */
    for (; i + 16 <= size; i += 16) *(block *)(d + i) = *(const block *)(s + i);
    for (; i < size; i++) d[i] = s[i];
  } else {
    for (i = size; i >= 16; i -= 16) *(block *)(d + i - 16) = *(const block *)(s + i - 16);
    while (i--) d[i] = s[i];
  }
  return to;
}

void *memcpy(void *to, const void *from, size_t size) { return memmove(to, from, size); }

void *memset(void *to, int value, size_t size) {
  uint8_t *d = to, byte = (uint8_t)value;
  size_t i = 0;
  block filled = (block){0} + byte;
  for (; i + 16 <= size; i += 16) *(block *)(d + i) = filled;
  for (; i < size; i++) d[i] = byte;
  return to;
}
