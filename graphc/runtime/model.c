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

   One job at a time: `num_task` tasks, thread t of `num_threads` takes tasks t, t + num_threads, ... Thread 0 is the
   launcher. Each other thread has a seat. `claimed` of a seat is the last epoch whose share somebody took: its worker,
   or the launcher, which takes what no worker has begun (one that sleeps, or that the system has put aside). A claim
   for an epoch succeeds once, and the launcher ends the epoch only when every seat was claimed and what workers claimed
   is done: so the job holds still for whoever has a claim, and a worker that comes late finds nothing to take.

   What a launch costs is cache lines that move between cores, 100 ns and more each: the job's to the worker, `done` to
   the launcher. `claimed` stays with the worker as long as it is in time. */

enum {
  SPINS = 4000,    /* 50-100 us: longer than the gap between two kernels, far shorter than a time slice */
  PATIENCE = 100,  /* 1-3 us: how long the launcher leaves a worker that is awake its share */
  MAX_SEATS = 255, /* more threads than this and the launcher are not put to use */
};

typedef struct {
  void *sync_handle;
  int32_t num_task;
} parallel_env; /* TVMParallelGroupEnv */

typedef int (*parallel_task)(int task_id, parallel_env *env, void *closure);

/* One cache line: written by the launcher, `epoch` last, and read by all. */
static struct {
  _Alignas(64) atomic_uint epoch; /* futex: workers sleep on it */
  parallel_task task;
  void *closure;
  parallel_env env;
  int32_t num_threads;
} job;

static struct {
  _Alignas(64) atomic_uint claimed;
  _Alignas(64) atomic_uint done; /* the last epoch that this worker finished; futex: the launcher sleeps on it */
  atomic_int error;
} seats[MAX_SEATS];

static struct {
  _Alignas(64) atomic_uint sleeping; /* workers that sleep, or are about to */
  atomic_uint launcher_sleeps, stopping;
  atomic_int seated;            /* workers that have come */
  _Alignas(64) atomic_int busy; /* a job runs: a launch now comes from inside one of its tasks */
} pool;

/* The tasks of one thread; the last error of them. */
static int run_share(int thread) {
  int error = 0;
  for (int i = thread; i < job.env.num_task; i += job.num_threads) {
    int found = job.task(i, &job.env, job.closure);
    if (found) error = found;
  }
  return error;
}

/* Whether the caller is the one who takes the seat's share of the epoch. */
static int claim(int seat, unsigned epoch) {
  unsigned before = epoch - 1;
  return atomic_load_explicit(&seats[seat].claimed, memory_order_relaxed) == before &&
         atomic_compare_exchange_strong(&seats[seat].claimed, &before, epoch);
}

static int is_done(int seat, unsigned epoch, int spins) {
  while (atomic_load_explicit(&seats[seat].done, memory_order_acquire) != epoch) {
    if (!spins--) return 0;
    relax();
  }
  return 1;
}

/* Wait until the seat's worker, which has claimed the epoch, has done its share. */
static void wait_for(int seat, unsigned epoch) {
  if (is_done(seat, epoch, SPINS)) return;
  atomic_store(&pool.launcher_sleeps, 1);
  for (unsigned done; (done = atomic_load(&seats[seat].done)) != epoch;) futex_wait(&seats[seat].done, done);
  atomic_store(&pool.launcher_sleeps, 0);
}

static int launch(parallel_task task, void *closure, int num_task) {
  if (num_task == 1 || job.num_threads <= 1 || atomic_load_explicit(&pool.busy, memory_order_relaxed)) {
    parallel_env env = {0, num_task ? num_task : 1};
    int error = 0;
    for (int i = 0; i < env.num_task && !error; i++) error = task(i, &env, closure);
    return error;
  }
  unsigned epoch = atomic_load_explicit(&job.epoch, memory_order_relaxed) + 1;
  atomic_store_explicit(&pool.busy, 1, memory_order_relaxed);
  job.task = task;
  job.closure = closure;
  job.env = (parallel_env){0, num_task > 0 ? num_task : job.num_threads};
  atomic_store_explicit(&job.epoch, epoch, memory_order_release);
  /* A worker that falls asleep right now may miss this epoch: then its share is taken below. */
  int asleep = atomic_load_explicit(&pool.sleeping, memory_order_relaxed) != 0;
  if (asleep) futex_wake(&job.epoch, INT32_MAX);
  int error = run_share(0);
  for (int seat = 0; seat < job.num_threads - 1; seat++) {
    int found;
    if (!is_done(seat, epoch, asleep ? 0 : PATIENCE) && claim(seat, epoch)) {
      found = run_share(seat + 1);
    } else {
      wait_for(seat, epoch);
      found = atomic_load_explicit(&seats[seat].error, memory_order_relaxed);
    }
    if (found) error = found;
  }
  atomic_store_explicit(&pool.busy, 0, memory_order_relaxed);
  return error;
}

/* TVM's objects define this pointer weakly and call through it. */
__attribute__((visibility("hidden"))) extern int (*__TVMBackendParallelLaunch)(parallel_task, void *, int);
int (*__TVMBackendParallelLaunch)(parallel_task, void *, int) = launch;

/* Leave workers nothing to do in an epoch. */
static void claim_all(unsigned epoch) {
  for (int seat = 0; seat < job.num_threads - 1; seat++) atomic_store(&seats[seat].claimed, epoch);
}

void graphc_pool_start(int32_t num_threads) {
  job.num_threads = num_threads < 1 ? 1 : num_threads > MAX_SEATS ? MAX_SEATS + 1 : num_threads;
  claim_all(atomic_load(&job.epoch));
  atomic_store(&pool.seated, 0);
  atomic_store(&pool.stopping, 0);
}

void graphc_worker(void) {
  int seat = atomic_fetch_add(&pool.seated, 1);
  if (seat >= job.num_threads - 1) return;
  configure_tiles();
  for (;;) {
    unsigned epoch = atomic_load(&job.epoch);
    if (atomic_load(&pool.stopping)) break;
    if (claim(seat, epoch)) {
      atomic_store_explicit(&seats[seat].error, run_share(seat + 1), memory_order_relaxed);
      atomic_store(&seats[seat].done, epoch);
      if (atomic_load(&pool.launcher_sleeps)) futex_wake(&seats[seat].done, 1);
    }
    for (int i = 0; i < SPINS && atomic_load_explicit(&job.epoch, memory_order_acquire) == epoch; i++) relax();
    if (atomic_load(&job.epoch) != epoch) continue;
    atomic_fetch_add(&pool.sleeping, 1);
    release_tiles();
    futex_wait(&job.epoch, epoch);
    configure_tiles();
    atomic_fetch_sub(&pool.sleeping, 1);
  }
  release_tiles();
}

void graphc_pool_stop(void) {
  atomic_store(&pool.stopping, 1);
  claim_all(atomic_load(&job.epoch) + 1);
  atomic_fetch_add(&job.epoch, 1);
  futex_wake(&job.epoch, INT32_MAX);
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
