/* Stress the thread pool and the memory functions of model.c. Prints "ok", or what went wrong. */
#define _DEFAULT_SOURCE /* usleep */
#define memcpy model_memcpy
#define memmove model_memmove
#define memset model_memset
#include "../../graphc/runtime/model.c"
#undef memcpy
#undef memmove
#undef memset

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int32_t no_step(const graphc_frame *frame) { return frame != NULL; }
static const graphc_step steps[] = {{"none", no_step}};
const graphc_program graphc_the_program = {.abi = GRAPHC_ABI, .num_steps = 1, .steps = steps};

enum { MAX_TASKS = 64 };

/* Plain counters: with a race, the sanitizer or the count tells. */
static struct {
  int runs[MAX_TASKS], nested[MAX_TASKS][3], expected_tasks, failing_task;
} tally;

static void expect(int condition, const char *what) {
  if (condition) return;
  printf("failed: %s\n", what);
  exit(1);
}

static int nested_task(int task_id, parallel_env *env, void *closure) {
  ((int *)closure)[task_id] += env->num_task;
  return 0;
}

static int task(int task_id, parallel_env *env, void *closure) {
  expect(closure == &tally && task_id >= 0 && task_id < env->num_task, "arguments");
  expect(env->num_task == tally.expected_tasks, "number of tasks");
  tally.runs[task_id]++;
  expect(__TVMBackendParallelLaunch(nested_task, tally.nested[task_id], 3) == 0, "nested launch");
  return task_id == tally.failing_task ? 7 : 0;
}

static void launch_once(int num_task, int expected_tasks, int failing_task) {
  memset(&tally, 0, sizeof tally);
  tally.expected_tasks = expected_tasks;
  tally.failing_task = failing_task;
  int error = __TVMBackendParallelLaunch(task, &tally, num_task);
  expect(error == (failing_task >= 0 ? 7 : 0), "error code");
  for (int i = 0; i < expected_tasks && failing_task < 0; i++) {
    expect(tally.runs[i] == 1, "each task once");
    for (int k = 0; k < 3; k++) expect(tally.nested[i][k] == 3, "each nested task once");
  }
}

static void *enter(void *unused) {
  graphc_worker();
  return unused;
}

static int add(int task_id, parallel_env *env, void *closure) {
  long *sums = closure;
  for (int i = task_id; i < 64; i += env->num_task) sums[i]++;
  return 0;
}

/* What one job writes the next one reads, on whichever thread: element i of a job's tasks moves between threads. */
static void chain(int launches) {
  static const int counts[] = {2, 3, 5, 0};
  long sums[64] = {0};
  for (int i = 0; i < launches; i++) expect(!__TVMBackendParallelLaunch(add, sums, counts[i % 4]), "chain");
  for (int i = 0; i < 64; i++) expect(sums[i] == launches, "each element once in each job");
}

/* Launches just before, while and after workers fall asleep, so that shares are taken over and workers come late. */
static void stress(int threads, int launches) {
  static const int counts[] = {0, 1, 2, 3, 7, MAX_TASKS};
  pthread_t workers[8];
  graphc_pool_start(threads);
  for (int i = 0; i < threads - 1; i++) expect(!pthread_create(&workers[i], NULL, enter, NULL), "pthread_create");
  for (int i = 0; i < launches; i++) {
    int count = counts[i % 6], expected = count ? count : threads;
    launch_once(count, expected, i % 5 == 4 ? expected - 1 : -1);
    if (i % 500 == 499) usleep(2000); /* let the workers fall asleep */
    if (i % 500 < 20) usleep(i % 500 * 10); /* and launch just then */
  }
  chain(launches);
  graphc_pool_stop();
  for (int i = 0; i < threads - 1; i++) pthread_join(workers[i], NULL);
}

static void memory(void) {
  uint8_t own[256], libc[256];
  for (size_t size = 0; size < 100; size++)
    for (size_t from = 0; from < 40; from += 3)
      for (size_t to = 0; to < 40; to += 7) {
        for (int i = 0; i < 256; i++) own[i] = libc[i] = (uint8_t)(i * 7 + 1);
        expect(model_memmove(own + to, own + from, size) == own + to, "memmove's result");
        memmove(libc + to, libc + from, size);
        expect(!memcmp(own, libc, 256), "memmove");
        model_memset(own + from, 0x1a7, size);
        memset(libc + from, 0x1a7, size);
        expect(!memcmp(own, libc, 256), "memset");
      }
}

/* Threads that never come, and one too many, cost time and nothing else. */
static void wrong_number(void) {
  pthread_t workers[2];
  graphc_pool_start(8);
  launch_once(0, 8, -1);
  graphc_pool_stop();
  graphc_pool_start(2);
  for (int i = 0; i < 2; i++) expect(!pthread_create(&workers[i], NULL, enter, NULL), "pthread_create");
  for (int i = 0; i < 1000; i++) launch_once(0, 2, -1);
  graphc_pool_stop();
  for (int i = 0; i < 2; i++) pthread_join(workers[i], NULL);
}

int main(int count, char **arguments) {
  memory();
  wrong_number();
  for (int round = 0; round < 3; round++)
    for (int threads = 1; threads <= 4; threads++) stress(threads, count > 1 ? atoi(arguments[1]) : 2000);
  puts("ok");
  return 0;
}
