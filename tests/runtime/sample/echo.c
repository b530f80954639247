/* A program that copies each input to its output: one of every dtype, n by 3, with n in [0, 5]. */
#include "model.h"

void *memcpy(void *to, const void *from, size_t size);

enum { COUNT = 10 };

#define STEP(index, bytes)                                                          \
  static int32_t step##index(const graphc_frame *f) {                               \
    memcpy(f->outputs[index], f->inputs[index], (size_t)f->symbols[0] * 3 * bytes); \
    return 0;                                                                       \
  }
STEP(0, 8)
STEP(1, 4)
STEP(2, 2) STEP(3, 2) STEP(4, 8) STEP(5, 4) STEP(6, 2) STEP(7, 1) STEP(8, 1) STEP(9, 1)

    static const graphc_step steps[] = {{"0", step0}, {"1", step1}, {"2", step2}, {"3", step3}, {"4", step4},
                                        {"5", step5}, {"6", step6}, {"7", step7}, {"8", step8}, {"9", step9}};
static const graphc_tensor_info tensors[] = {{"f64", 0, 2}, {"f32", 1, 2}, {"f16", 2, 2}, {"bf16", 3, 2},
                                             {"i64", 4, 2}, {"i32", 5, 2}, {"i16", 6, 2}, {"i8", 7, 2},
                                             {"u8", 8, 2},  {"bool", 9, 2}};
static const graphc_symbol symbols[] = {{"n", 0, 5}};
static const char *const features[] = {0};

static void shapes(const int64_t *symbol, int64_t *dims) {
  for (int i = 0; i < 2 * COUNT; i++) {
    dims[2 * i] = symbol[0];
    dims[2 * i + 1] = 3;
  }
}

const graphc_program graphc_the_program = {GRAPHC_ABI, 0,       0,       0,       COUNT, COUNT,  1,       0,
                                           COUNT,      tensors, tensors, symbols, steps, shapes, features, 0};
