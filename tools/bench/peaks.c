// Loops that do nothing but one kind of instruction, to learn what a core can do at most.
//
// Each runs `n` rounds of twelve independent instructions (four for tiles), enough to hide their latency, on registers
// that hold nought. Written as assembly: a compiler would drop work that no one uses.

#include <stdint.h>

#define VISIBLE __attribute__((visibility("default")))

#if defined(__x86_64__)

#define TWELVE(op, r)                                                                                       \
    op " %%" r "0, %%" r "1, %%" r "2\n" op " %%" r "0, %%" r "1, %%" r "3\n" op " %%" r "0, %%" r "1, %%" r "4\n"    \
    op " %%" r "0, %%" r "1, %%" r "5\n" op " %%" r "0, %%" r "1, %%" r "6\n" op " %%" r "0, %%" r "1, %%" r "7\n"    \
    op " %%" r "0, %%" r "1, %%" r "8\n" op " %%" r "0, %%" r "1, %%" r "9\n" op " %%" r "0, %%" r "1, %%" r "10\n"   \
    op " %%" r "0, %%" r "1, %%" r "11\n" op " %%" r "0, %%" r "1, %%" r "12\n" op " %%" r "0, %%" r "1, %%" r "13\n"

#define CLOBBERED                                                                                               \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13"

#define ROUNDS(name, op, r)                                                     \
    VISIBLE void name(int64_t n) {                                              \
        __asm__ volatile("vzeroall" ::: CLOBBERED);                             \
        for (int64_t i = 0; i < n; i++) __asm__ volatile(TWELVE(op, r) ::: CLOBBERED); \
        __asm__ volatile("vzeroupper");                                         \
    }

ROUNDS(fma_avx2, "vfmadd231ps", "ymm")
ROUNDS(fma_avx512, "vfmadd231ps", "zmm")
ROUNDS(dot_avxvnni, "%{vex%} vpdpbusd", "ymm")
ROUNDS(dot_avx512vnni, "vpdpbusd", "zmm")
ROUNDS(dot_avx512bf16, "vdpbf16ps", "zmm")

// Tiles need Linux's permission (arch_prctl ARCH_REQ_XCOMP_PERM, 18) and a configuration: eight of 16 rows of 64 bytes.
static int64_t tiles_begin(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } configuration = {.palette = 1};
    for (int i = 0; i < 8; i++) configuration.bytes[i] = 64, configuration.rows[i] = 16;
    int64_t result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(158L), "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");
    if (result == 0)
        __asm__ volatile("ldtilecfg %0\ntilezero %%tmm0\ntilezero %%tmm1\ntilezero %%tmm2\ntilezero %%tmm3\n"
                         "tilezero %%tmm4\ntilezero %%tmm5" : : "m"(configuration));
    return result;
}

#define TILES(name, op)                                                                                    \
    VISIBLE void name(int64_t n) {                                                                         \
        if (tiles_begin()) return;                                                                         \
        for (int64_t i = 0; i < n; i++)                                                                    \
            __asm__ volatile(op " %tmm4, %tmm5, %tmm0\n" op " %tmm4, %tmm5, %tmm1\n" op " %tmm4, %tmm5, %tmm2\n" \
                             op " %tmm4, %tmm5, %tmm3");                                                   \
        __asm__ volatile("tilerelease");                                                                   \
    }

TILES(dot_amx_int8, "tdpbssd")
TILES(dot_amx_bf16, "tdpbf16ps")

#define LOAD(k) "vmovups " #k "*32(%0), %%ymm" #k "\n"
#define LOADS LOAD(0) LOAD(1) LOAD(2) LOAD(3) LOAD(4) LOAD(5) LOAD(6) LOAD(7)
#define AHEAD "prefetcht0 8192(%0)\nprefetcht0 8256(%0)\nprefetcht0 8320(%0)\nprefetcht0 8384(%0)\n"

#define READ(name, instructions)                                                                               \
    VISIBLE void name(const char *from, int64_t bytes) {                                                       \
        for (const char *p = from; p + 256 <= from + bytes; p += 256)                                          \
            __asm__ volatile(instructions : : "r"(p) : CLOBBERED);                                             \
        __asm__ volatile("vzeroupper");                                                                        \
    }

READ(read_memory, LOADS)
READ(read_ahead, AHEAD LOADS)

#elif defined(__aarch64__)

#define TWELVE(op, to, from)                                                                                   \
    op " v2." to ", v0." from ", v1." from "\n" op " v3." to ", v0." from ", v1." from "\n"                    \
    op " v4." to ", v0." from ", v1." from "\n" op " v5." to ", v0." from ", v1." from "\n"                    \
    op " v6." to ", v0." from ", v1." from "\n" op " v7." to ", v0." from ", v1." from "\n"                    \
    op " v16." to ", v0." from ", v1." from "\n" op " v17." to ", v0." from ", v1." from "\n"                  \
    op " v18." to ", v0." from ", v1." from "\n" op " v19." to ", v0." from ", v1." from "\n"                  \
    op " v20." to ", v0." from ", v1." from "\n" op " v21." to ", v0." from ", v1." from "\n"

#define CLOBBERED "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19", "v20", "v21"

#define ROUNDS(name, extension, op, to, from)                                                                  \
    VISIBLE void name(int64_t n) {                                                                             \
        __asm__ volatile("movi v0.4s, #0\nmovi v1.4s, #0" ::: CLOBBERED);                                      \
        for (int64_t i = 0; i < n; i++) __asm__ volatile(extension TWELVE(op, to, from) ::: CLOBBERED);        \
    }

ROUNDS(fma_neon, "", "fmla", "4s", "4s")
ROUNDS(dot_dotprod, ".arch_extension dotprod\n", "sdot", "4s", "16b")
ROUNDS(dot_i8mm, ".arch_extension i8mm\n", "smmla", "4s", "16b")
ROUNDS(dot_bf16, ".arch_extension bf16\n", "bfmmla", "4s", "8h")

#define LOADS "ldp q0, q1, [%0]\nldp q2, q3, [%0, #32]\nldp q4, q5, [%0, #64]\nldp q6, q7, [%0, #96]\n"
#define AHEAD "prfm pldl1keep, [%0, #8192]\nprfm pldl1keep, [%0, #8256]\n"

#define READ(name, instructions)                                                                               \
    VISIBLE void name(const char *from, int64_t bytes) {                                                       \
        for (const char *p = from; p + 128 <= from + bytes; p += 128)                                          \
            __asm__ volatile(instructions : : "r"(p) : CLOBBERED);                                             \
    }

READ(read_memory, LOADS)
READ(read_ahead, AHEAD LOADS)

#endif
