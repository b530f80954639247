/* What a code section is made of: kernels (from a backend), the program (entry.c, generated), and model.c, linked into
   one ELF shared object that imports nothing. Freestanding: no libc.

   entry.c declares each kernel as GRAPHC_KERNEL and defines `graphc_the_program`. */
#ifndef GRAPHC_MODEL_H
#define GRAPHC_MODEL_H

#include "graphc.h"

#define GRAPHC_ABI 1
#define GRAPHC_EXPORT __attribute__((visibility("default")))
#define GRAPHC_KERNEL __attribute__((visibility("hidden"))) extern

/* What one run works on. weights, state and arena are 64-byte aligned, inputs and outputs aligned to their element
   size; state holds what the init steps computed and is read-only afterwards. */
typedef struct {
  const uint8_t *weights;
  uint8_t *state;
  uint8_t *arena;
  void *const *inputs;
  void *const *outputs;
  const int64_t *symbols;
} graphc_frame;

/* One kernel call; `run` returns 0, or the kernel's error code. */
typedef struct {
  const char *name;
  int32_t (*run)(const graphc_frame *frame);
} graphc_step;

typedef struct {
  const char *name;
  int32_t dtype; /* enum graphc_dtype */
  int32_t rank;  /* at most GRAPHC_MAX_RANK */
} graphc_tensor_info;

typedef struct {
  const char *name;
  int64_t minimum, maximum; /* inclusive */
} graphc_symbol;

typedef struct {
  uint32_t abi; /* GRAPHC_ABI */
  int64_t arena_bytes, state_bytes, weights_bytes;
  int32_t num_inputs, num_outputs, num_symbols;
  /* steps[0..num_init_steps) run once at load, the rest, up to num_steps, on each run */
  int32_t num_init_steps, num_steps;
  const graphc_tensor_info *inputs, *outputs;
  const graphc_symbol *symbols;
  const graphc_step *steps;
  /* Writes the sizes of all inputs, then of all outputs, one after the other. */
  void (*shapes)(const int64_t *symbols, int64_t *dims);
  const char *const *features; /* CPU features (LLVM's names) that the kernels need, then NULL */
  int32_t tiles;               /* whether kernels use AMX tiles: 8 of 16 rows of 64 bytes, configured by model.c */
} graphc_program;

/* entry.c */
__attribute__((visibility("hidden"))) extern const graphc_program graphc_the_program;

/* model.c: the exports of a code section. Threads belong to the host: it calls graphc_pool_start(n), lets n - 1 threads
   enter graphc_worker, and after graphc_pool_stop() joins them. One thread at a time calls graphc_steps. */
GRAPHC_EXPORT const graphc_program *graphc_program_get(void);
/* 1 where this CPU and its operating system provide the feature. hwcap, hwcap2: AT_HWCAP and AT_HWCAP2 (arm64 only). */
GRAPHC_EXPORT int32_t graphc_has_feature(const char *name, uint64_t hwcap, uint64_t hwcap2);
/* Run steps[first..last); nanoseconds (may be NULL) gets last - first durations. Returns 0, or 1 + the index of the
   step that failed. */
GRAPHC_EXPORT int32_t graphc_steps(const graphc_frame *frame, int32_t first, int32_t last, uint64_t *nanoseconds);
GRAPHC_EXPORT void graphc_pool_start(int32_t num_threads);
GRAPHC_EXPORT void graphc_worker(void);
GRAPHC_EXPORT void graphc_pool_stop(void);

#endif
