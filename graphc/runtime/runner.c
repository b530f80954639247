/* Run an artifact for a program at the other end of two pipes: how graphc runs another architecture's code in qemu.

   runner model.graphc threads

   Answers start with one byte: 0, or 1 and then a message of GRAPHC_ERROR_SIZE bytes and nothing else. The first answer
   comes after loading. Then, until stdin ends, it reads one byte and the dynamic sizes (int64 each), and for
     's'  answers 0 and the dims (int64) of all inputs, then of all outputs;
     'r'  reads the inputs, and answers 0, the nanoseconds (uint64) of each step, and the outputs. */
#include <stdio.h>
#include <stdlib.h>

#include "graphc.h"

static void answer(const void *data, size_t size) {
  if (fwrite(data, 1, size, stdout) != size) exit(1);
}

static void answer_ok(void) { answer("", 1); }

static void answer_error(const char *error) {
  char message[1 + GRAPHC_ERROR_SIZE] = {1};
  snprintf(message + 1, GRAPHC_ERROR_SIZE, "%s", error);
  answer(message, sizeof message);
}

static void *allocate(size_t size) {
  void *memory = aligned_alloc(64, (size + 64) / 64 * 64);
  if (!memory) exit((fputs("out of memory\n", stderr), 1));
  return memory;
}

int main(int count, char **arguments) {
  if (count != 3) return fputs("usage: runner model.graphc threads\n", stderr), 2;
  char error[GRAPHC_ERROR_SIZE];
  graphc_model *model = graphc_load(arguments[1], atoi(arguments[2]), error);
  if (!model) return answer_error(error), 1;
  answer_ok();
  fflush(stdout);
  const int inputs = graphc_num_inputs(model), tensors = inputs + graphc_num_outputs(model);
  const size_t symbols = (size_t)graphc_num_symbols(model), steps = (size_t)graphc_num_steps(model);
  int64_t *sizes = allocate(symbols * sizeof *sizes);
  uint64_t *nanoseconds = allocate(steps * sizeof *nanoseconds);
  void **data = allocate((size_t)tensors * sizeof *data);
  size_t *bytes = allocate((size_t)tensors * sizeof *bytes);
  for (int request; (request = getchar()) != EOF; fflush(stdout)) {
    if (fread(sizes, sizeof *sizes, symbols, stdin) != symbols) return 1;
    if (request == 's') answer_ok();
    for (int i = 0; i < tensors; i++) {
      graphc_tensor tensor;
      if (i < inputs ? graphc_input(model, i, sizes, &tensor) : graphc_output(model, i - inputs, sizes, &tensor))
        return 1;
      if (request == 's') answer(tensor.dims, (size_t)tensor.rank * sizeof *tensor.dims);
      bytes[i] = tensor.bytes;
    }
    if (request == 's') continue;
    for (int i = 0; i < tensors; i++) data[i] = allocate(bytes[i]);
    for (int i = 0; i < inputs; i++)
      if (fread(data[i], 1, bytes[i], stdin) != bytes[i]) return 1;
    if (graphc_profile(model, (const void *const *)data, sizes, data + inputs, nanoseconds)) {
      answer_error(graphc_error(model));
    } else {
      answer_ok();
      answer(nanoseconds, steps * sizeof *nanoseconds);
      for (int i = inputs; i < tensors; i++) answer(data[i], bytes[i]);
    }
    for (int i = 0; i < tensors; i++) free(data[i]);
  }
  graphc_free(model);
  return 0;
}
