/* graphc: run a compiled neural network from C. Compile graphc.c (Linux, pthreads) into your program: that is all.

   graphc_model *model = graphc_load("model.graphc", 0, error);
   graphc_run(model, inputs, NULL, outputs);
   graphc_free(model);
*/
#ifndef GRAPHC_H
#define GRAPHC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum graphc_dtype {
  GRAPHC_F64,
  GRAPHC_F32,
  GRAPHC_F16,
  GRAPHC_BF16,
  GRAPHC_I64,
  GRAPHC_I32,
  GRAPHC_I16,
  GRAPHC_I8,
  GRAPHC_U8,
  GRAPHC_BOOL
};

#define GRAPHC_MAX_RANK 16
#define GRAPHC_ERROR_SIZE 256

typedef struct graphc_model graphc_model;

/* One input or output: `dims[0..rank)` elements of `dtype`, dense and row-major, `bytes` in all. */
typedef struct {
  const char *name;
  enum graphc_dtype dtype;
  int rank;
  int64_t dims[GRAPHC_MAX_RANK];
  size_t bytes;
} graphc_tensor;

/* Load an artifact: verify its hash, version and CPU features, map its weights, start `threads` threads (0: one per CPU
   that this process may use, the caller counted). Returns NULL and writes a message to `error` where that fails. */
graphc_model *graphc_load(const char *path, int threads, char error[GRAPHC_ERROR_SIZE]);

/* Run once. `inputs` and `outputs` point to the tensors that graphc_input and graphc_output describe, aligned to their
   element size; `symbols` holds the dynamic sizes (NULL where the model has none). Blocks; calls from several threads
   queue up. Returns 0, or -1 with the reason in graphc_error. */
int graphc_run(graphc_model *model, const void *const *inputs, const int64_t *symbols, void *const *outputs);

/* The same, and writes the duration of each of the graphc_num_steps steps. */
int graphc_profile(graphc_model *model, const void *const *inputs, const int64_t *symbols, void *const *outputs,
                   uint64_t *nanoseconds);

/* Why the last call on this model returned -1. */
const char *graphc_error(const graphc_model *model);

int graphc_num_inputs(const graphc_model *model);
int graphc_num_outputs(const graphc_model *model);
int graphc_num_symbols(const graphc_model *model);
int graphc_num_steps(const graphc_model *model);

/* Describe one input or output for given dynamic sizes. Returns 0, or -1 for an unknown index or sizes out of range. */
int graphc_input(graphc_model *model, int index, const int64_t *symbols, graphc_tensor *tensor);
int graphc_output(graphc_model *model, int index, const int64_t *symbols, graphc_tensor *tensor);

/* Name and inclusive range of one dynamic size. Returns 0, or -1 for an unknown index. */
int graphc_symbol_range(const graphc_model *model, int index, const char **name, int64_t *minimum, int64_t *maximum);

/* Name of one step, NULL for an unknown index. */
const char *graphc_step_name(const graphc_model *model, int index);

/* Stop the threads and release everything. `model` may be NULL. */
void graphc_free(graphc_model *model);

#ifdef __cplusplus
}
#endif
#endif
