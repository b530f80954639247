/* Classify one image with a compiled model: prints each class's logit, then the class.

   cc -O2 -I graphc/runtime examples/c/classify.c graphc/runtime/graphc.c -lpthread -o classify
   ./classify model.graphc image.f32      image.f32: the model's input as raw float32 */
#include <stdio.h>
#include <stdlib.h>

#include "graphc.h"

static int fail(const char *message) {
  fprintf(stderr, "classify: %s\n", message);
  return 1;
}

int main(int count, char **arguments) {
  if (count != 3) return fail("usage: classify model.graphc image.f32");
  char error[GRAPHC_ERROR_SIZE];
  graphc_model *model = graphc_load(arguments[1], 0, error);
  if (!model) return fail(error);

  int64_t sizes[] = {1}; /* of a model with a dynamic batch */
  graphc_tensor image, logits;
  if (graphc_num_inputs(model) != 1 || graphc_num_outputs(model) != 1 || graphc_num_symbols(model) > 1 ||
      graphc_input(model, 0, sizes, &image) || graphc_output(model, 0, sizes, &logits) || image.dtype != GRAPHC_F32 ||
      logits.dtype != GRAPHC_F32)
    return fail("the model must take one float32 image and give float32 logits");

  float *pixels = malloc(image.bytes), *values = malloc(logits.bytes);
  FILE *file = fopen(arguments[2], "rb");
  if (!pixels || !values || !file || fread(pixels, 1, image.bytes, file) != image.bytes || fgetc(file) != EOF) {
    fprintf(stderr, "classify: %s must hold %zu bytes of float32\n", arguments[2], image.bytes);
    return 1;
  }
  fclose(file);

  const void *inputs[] = {pixels};
  void *outputs[] = {values};
  if (graphc_run(model, inputs, sizes, outputs)) return fail(graphc_error(model));

  size_t classes = logits.bytes / sizeof *values, best = 0;
  for (size_t i = 0; i < classes; i++) {
    printf("%zu %g\n", i, values[i]);
    if (values[i] > values[best]) best = i;
  }
  printf("class %zu\n", best);
  free(pixels);
  free(values);
  graphc_free(model);
  return 0;
}
