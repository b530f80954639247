/* What a backend generates: y, total = f(x, mask) with a dynamic batch; the weights are unpacked at load. */
#include "model.h"

#ifndef FEATURE
#define FEATURE 0
#endif

GRAPHC_KERNEL int32_t unpack(const void *, void *);
GRAPHC_KERNEL int32_t linear(const void *, const void *, const void *, void *, int64_t);
GRAPHC_KERNEL int32_t total(const void *, void *, void *, int64_t);

static int32_t step0(const graphc_frame *f) { return unpack(f->weights + 64, f->state); }
static int32_t step1(const graphc_frame *f) {
  return linear(f->inputs[0], f->inputs[1], f->state, f->outputs[0], f->symbols[0]);
}
static int32_t step2(const graphc_frame *f) { return total(f->outputs[0], f->arena, f->outputs[1], f->symbols[0]); }

static const graphc_step steps[] = {{"unpack", step0}, {"linear", step1}, {"total", step2}};
static const graphc_tensor_info inputs[] = {{"x", GRAPHC_F32, 2}, {"mask", GRAPHC_BOOL, 2}};
static const graphc_tensor_info outputs[] = {{"y", GRAPHC_F32, 2}, {"total", GRAPHC_F64, 0}};
static const graphc_symbol symbols[] = {{"batch", 1, 100}};
static const char *const features[] = {FEATURE, 0};

static void shapes(const int64_t *symbol, int64_t *dims) {
  dims[0] = dims[2] = dims[4] = symbol[0];
  dims[1] = dims[3] = 8;
  dims[5] = 4;
}

const graphc_program graphc_the_program = {GRAPHC_ABI, 100 * 4 * 4, 32 * 4,  96,      2,     2,      1,       1,
                                           3,          inputs,      outputs, symbols, steps, shapes, features, 0};
