/* A program that classifies: 3 logits of an 8-pixel image. */
#include "model.h"

static int32_t classify(const graphc_frame *f) {
  const float *weights = (const float *)f->weights, *image = f->inputs[0];
  float *logits = f->outputs[0];
  for (int o = 0; o < 3; o++) {
    logits[o] = 0;
    for (int i = 0; i < 8; i++) logits[o] += weights[o * 8 + i] * image[i];
  }
  return 0;
}

static const graphc_step steps[] = {{"classify", classify}};
static const graphc_tensor_info inputs[] = {{"image", GRAPHC_F32, 2}}, outputs[] = {{"logits", GRAPHC_F32, 2}};
static const char *const features[] = {0};

static void shapes(const int64_t *symbol, int64_t *dims) {
  (void)symbol;
  dims[0] = dims[2] = 1;
  dims[1] = 8;
  dims[3] = 3;
}

const graphc_program graphc_the_program = {GRAPHC_ABI, 0,      0,       96, 1,     1,      0,       0,
                                           1,          inputs, outputs, 0,  steps, shapes, features, 0};
