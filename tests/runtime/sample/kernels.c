/* What a backend's object holds: kernels that call TVM's parallel launch through a weak pointer. */
#include <stdint.h>

typedef struct {
  void *sync_handle;
  int32_t num_task;
} parallel_env;
typedef int (*parallel_task)(int task_id, parallel_env *env, void *closure);
__attribute__((weak)) int (*__TVMBackendParallelLaunch)(parallel_task, void *, int);

int32_t unpack(const int8_t *packed, float *weights) {
  for (int i = 0; i < 32; i++) weights[i] = 0.5f * packed[i];
  return 0;
}

struct linear {
  const float *x, *weights;
  const uint8_t *mask;
  float *y;
  int64_t batch;
};

static int linear_rows(int task_id, parallel_env *env, void *closure) {
  const struct linear *c = closure;
  int64_t chunk = (c->batch + env->num_task - 1) / env->num_task, end = (task_id + 1) * chunk;
  for (int64_t row = task_id * chunk; row < end && row < c->batch; row++)
    for (int o = 0; o < 4; o++) {
      float sum = 0;
      for (int i = 0; i < 8; i++) {
        float x = c->x[row * 8 + i];
        if (x != x) return 5;
        sum += c->mask[row * 8 + i] ? x * c->weights[o * 8 + i] : 0;
      }
      c->y[row * 4 + o] = sum;
    }
  return 0;
}

int32_t linear(const float *x, const uint8_t *mask, const float *weights, float *y, int64_t batch) {
  struct linear closure = {x, weights, mask, y, batch};
  return __TVMBackendParallelLaunch(linear_rows, &closure, 0);
}

int32_t total(const float *y, float *scratch, double *sum, int64_t batch) {
  *sum = 0;
  for (int64_t i = 0; i < batch * 4; i++) *sum += scratch[i] = y[i];
  return 0;
}
