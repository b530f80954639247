/* The C interface on the sample: prints what it describes and computes. */
#include <stdio.h>
#include <string.h>

#include "graphc.h"

static void print_tensor(const graphc_tensor *tensor) {
  printf("%s %d [", tensor->name, tensor->dtype);
  for (int i = 0; i < tensor->rank; i++) printf(" %lld", (long long)tensor->dims[i]);
  printf(" ] %zu\n", tensor->bytes);
}

int main(int count, char **arguments) {
  if (count != 2) return 2;
  char error[GRAPHC_ERROR_SIZE];
  graphc_model *model = graphc_load(arguments[1], 2, error);
  if (!model) return printf("error: %s\n", error), 1;

  const char *name;
  int64_t minimum, maximum, sizes[] = {3}, too_large[] = {101};
  graphc_tensor tensor;
  for (int i = 0; graphc_symbol_range(model, i, &name, &minimum, &maximum) == 0; i++)
    printf("%s %lld %lld\n", name, (long long)minimum, (long long)maximum);
  for (int i = 0; graphc_input(model, i, sizes, &tensor) == 0; i++) print_tensor(&tensor);
  for (int i = 0; graphc_output(model, i, sizes, &tensor) == 0; i++) print_tensor(&tensor);
  for (int i = -1; i < 3; i++) printf("step %s\n", graphc_step_name(model, i) ? graphc_step_name(model, i) : "none");
  printf("out of range: %d\n", graphc_input(model, 0, too_large, &tensor));

  float x[3 * 8], y[3 * 4];
  unsigned char mask[3 * 8];
  double total;
  uint64_t nanoseconds[2] = {0, 0};
  for (int i = 0; i < 24; i++) x[i] = (float)(i % 5), mask[i] = 1;
  const void *inputs[] = {x, mask};
  void *outputs[] = {y, &total};
  printf("run: %d", graphc_profile(model, inputs, sizes, outputs, nanoseconds));
  for (int i = 0; i < 12; i++) printf(" %g", y[i]);
  printf(" total %g\n", total);
  printf("timed: %d\n", nanoseconds[0] > 0);
  printf("run: %d %s\n", graphc_run(model, inputs, too_large, outputs), graphc_error(model));
  printf("run: %d %s\n", graphc_run(model, inputs, NULL, outputs), graphc_error(model));
  memset(x, 0xff, sizeof x);
  printf("run: %d %s\n", graphc_run(model, inputs, sizes, outputs), graphc_error(model));
  graphc_free(model);
  graphc_free(NULL);
  return 0;
}
