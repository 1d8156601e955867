/* What is done to one row of pixels, in three instruction sets.
 *
 * The bodies are plain C, inlined into one function per instruction set, where the compiler
 * vectorises them; only the horizontal pass, which has to permute, is written by hand. Which set
 * serves is chosen per call, so one library runs on every machine of its architecture.
 */
#ifndef LRV_NATIVE_ROWS_H
#define LRV_NATIVE_ROWS_H

#include <stdint.h>
#include <string.h>

#include "native_axis.h"

#if defined(__GNUC__)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#else
#define ALWAYS_INLINE static inline
#endif

#if defined(__GNUC__) && defined(__x86_64__)
#define LRV_X86 1
#include <immintrin.h>
#endif

enum { PORTABLE, AVX2, AVX512 };
enum { UINT8, FLOAT16, BFLOAT16, FLOAT32 };

static const int TYPE_BYTES[] = {1, 2, 2, 4};

typedef struct {
    /* row[i] = gain * source[i * step] + bias; step in elements */
    void (*load)(float *row, const void *source, int type, ptrdiff_t step, int count, float gain,
                 float bias);
    /* row = sum of count <= 4 weighted rows, added to what is there if `add` */
    void (*combine)(float *row, const float *const *rows, const float *weights, int count, int add,
                    int width);
    /* The same past the caches; row on a cache line, width a multiple of 16. */
    void (*combine_stream)(float *row, const float *const *rows, const float *weights, int count,
                           int width);
    /* row[i] = sum_k weight[k][i] * source[first[i] + k] */
    void (*horizontal)(float *row, const float *source, const Axis *axis);
    /* row = a * row + (1 - a) * other */
    void (*blend)(float *row, const float *other, float a, int width);
    /* row of floats to the result's type */
    void (*store)(void *target, const float *row, int type, int width);
    /* rows of elements, one per channel, to pixels */
    void (*interleave)(void *target, const void *rows, size_t row_bytes, int bytes, int channels,
                       int width);
    /* Copy past the caches; target on a cache line, bytes a multiple of 64. */
    void (*stream)(void *target, const void *source, size_t bytes);
} RowKernels;

ALWAYS_INLINE float float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

ALWAYS_INLINE uint32_t bits_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

ALWAYS_INLINE float float_from_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7fff;
    if (magnitude < 0x0400) { /* subnormal: a multiple of 2^-24 */
        float value = (float)magnitude * 0x1p-24f;
        return sign ? -value : value;
    }
    uint32_t exponent_shift = magnitude < 0x7c00 ? 112u << 23 : 224u << 23; /* infinity, NaN */
    return float_from_bits(sign | ((magnitude << 13) + exponent_shift));
}

/* To nearest, ties to even, as every conversion here. */
ALWAYS_INLINE uint16_t half_from_float(float value) {
    uint32_t bits = bits_from_float(value), sign = bits >> 16 & 0x8000;
    uint32_t magnitude = bits & 0x7fffffff;
    /* Below 2^-14 halves are multiples of 2^-24, the spacing of floats just above 1/2. */
    uint32_t tiny = bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000;
    uint32_t normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
    uint32_t half = magnitude < 0x38800000 ? tiny : normal;
    half = magnitude >= 0x477ff000 ? 0x7c00 : half; /* 65520 and more round to infinity */
    half = magnitude > 0x7f800000 ? 0x7e00 : half;  /* NaN */
    return (uint16_t)(sign | half);
}

ALWAYS_INLINE uint16_t bfloat_from_float(float value) {
    uint32_t bits = bits_from_float(value);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

ALWAYS_INLINE void load_bytes(float *restrict row, const uint8_t *restrict source, ptrdiff_t step,
                              int count, float gain, float bias) {
    for (int i = 0; i < count; i++) row[i] = (float)source[i * step] * gain + bias;
}

ALWAYS_INLINE void load_floats(float *restrict row, const float *restrict source, ptrdiff_t step,
                               int count, float gain, float bias) {
    for (int i = 0; i < count; i++) row[i] = source[i * step] * gain + bias;
}

ALWAYS_INLINE void load_body(float *row, const void *source, int type, ptrdiff_t step, int count,
                             float gain, float bias) {
    /* Constant steps are what lets the compiler vectorise planes and interleaved colours. */
    const uint16_t *words = source;
    switch (type) {
    case UINT8:
        if (step == 1) load_bytes(row, source, 1, count, gain, bias);
        else if (step == 3) load_bytes(row, source, 3, count, gain, bias);
        else load_bytes(row, source, step, count, gain, bias);
        return;
    case FLOAT32:
        if (step == 1) load_floats(row, source, 1, count, gain, bias);
        else load_floats(row, source, step, count, gain, bias);
        return;
    case FLOAT16:
        for (int i = 0; i < count; i++) row[i] = float_from_half(words[i * step]) * gain + bias;
        return;
    case BFLOAT16:
        for (int i = 0; i < count; i++) {
            row[i] = float_from_bits((uint32_t)words[i * step] << 16) * gain + bias;
        }
        return;
    }
}

ALWAYS_INLINE void combine_body(float *restrict row, const float *const *rows,
                                const float *weights, int count, int add, int width) {
    const float *restrict a = rows[0], *restrict b = rows[1];
    const float *restrict c = rows[2], *restrict d = rows[3];
    float u = weights[0], v = weights[1], w = weights[2], z = weights[3];
    if (add) {
        for (int i = 0; i < width; i++) row[i] += u * a[i] + v * b[i] + w * c[i] + z * d[i];
    } else if (count <= 1) {
        for (int i = 0; i < width; i++) row[i] = u * a[i];
    } else if (count == 2) {
        for (int i = 0; i < width; i++) row[i] = u * a[i] + v * b[i];
    } else {
        for (int i = 0; i < width; i++) row[i] = u * a[i] + v * b[i] + w * c[i] + z * d[i];
    }
}

ALWAYS_INLINE void horizontal_body(float *restrict row, const float *restrict source,
                                   const Axis *axis) {
    for (int i = 0; i < axis->outputs; i++) {
        const float *pixel = source + axis->first[i], *weight = axis->weight + i;
        float sum = weight[0] * pixel[0];
        for (int k = 1; k < axis->taps; k++) sum += weight[(size_t)k * axis->stride] * pixel[k];
        row[i] = sum;
    }
}

ALWAYS_INLINE void blend_body(float *restrict row, const float *restrict other, float a,
                              int width) {
    float b = 1 - a;
    for (int i = 0; i < width; i++) row[i] = a * row[i] + b * other[i];
}

ALWAYS_INLINE void store_body(void *target, const float *restrict row, int type, int width) {
    uint16_t *restrict words = target;
    switch (type) {
    case FLOAT32:
        memcpy(target, row, sizeof(float) * (size_t)width);
        return;
    case FLOAT16:
        for (int i = 0; i < width; i++) words[i] = half_from_float(row[i]);
        return;
    case BFLOAT16:
        for (int i = 0; i < width; i++) words[i] = bfloat_from_float(row[i]);
        return;
    }
}

#define INTERLEAVE(element)                                                                     \
    do {                                                                                        \
        element *restrict pixels = target;                                                      \
        const char *first = rows;                                                               \
        if (channels == 3) {                                                                    \
            const element *restrict r = (const element *)first;                                 \
            const element *restrict g = (const element *)(first + row_bytes);                   \
            const element *restrict b = (const element *)(first + 2 * row_bytes);               \
            for (int i = 0; i < width; i++) {                                                   \
                pixels[3 * i] = r[i];                                                           \
                pixels[3 * i + 1] = g[i];                                                       \
                pixels[3 * i + 2] = b[i];                                                       \
            }                                                                                   \
        } else {                                                                                \
            for (int c = 0; c < channels; c++) {                                                \
                const element *restrict row = (const element *)(first + (size_t)c * row_bytes); \
                for (int i = 0; i < width; i++) pixels[(ptrdiff_t)i * channels + c] = row[i];   \
            }                                                                                   \
        }                                                                                       \
    } while (0)

ALWAYS_INLINE void interleave_body(void *target, const void *rows, size_t row_bytes, int bytes,
                                   int channels, int width) {
    if (bytes == 2) INTERLEAVE(uint16_t);
    else INTERLEAVE(float);
}

#define DEFINE_ROWS(set, target_attribute)                                                      \
    target_attribute static void load_##set(float *row, const void *source, int type,           \
                                            ptrdiff_t step, int count, float gain, float bias) { \
        load_body(row, source, type, step, count, gain, bias);                                  \
    }                                                                                           \
    target_attribute static void combine_##set(float *row, const float *const *rows,            \
                                               const float *weights, int count, int add,        \
                                               int width) {                                     \
        combine_body(row, rows, weights, count, add, width);                                    \
    }                                                                                           \
    target_attribute static void blend_##set(float *row, const float *other, float a,           \
                                             int width) {                                       \
        blend_body(row, other, a, width);                                                       \
    }                                                                                           \
    target_attribute static void store_##set(void *target, const float *row, int type,          \
                                             int width) {                                       \
        store_body(target, row, type, width);                                                   \
    }                                                                                           \
    target_attribute static void interleave_##set(void *target, const void *rows,               \
                                                  size_t row_bytes, int bytes, int channels,    \
                                                  int width) {                                  \
        interleave_body(target, rows, row_bytes, bytes, channels, width);                       \
    }                                                                                           \
    static const RowKernels ROWS_##set = {                                                      \
        load_##set,  combine_##set, combine_stream_##set, horizontal_##set,                     \
        blend_##set, store_##set,   interleave_##set,     stream_##set};

static void horizontal_portable(float *row, const float *source, const Axis *axis) {
    if (axis->taps == 2) { /* worth a loop of its own: all enlarging is done here */
        const float *u = axis->weight, *v = u + axis->stride;
        for (int i = 0; i < axis->outputs; i++) {
            const float *pixel = source + axis->first[i];
            row[i] = u[i] * pixel[0] + v[i] * pixel[1];
        }
    } else {
        horizontal_body(row, source, axis);
    }
}

/* Ordinary stores: a portable build has no others. */
static void combine_stream_portable(float *row, const float *const *rows, const float *weights,
                                    int count, int width) {
    combine_body(row, rows, weights, count, 0, width);
}

static void stream_portable(void *target, const void *source, size_t bytes) {
    memcpy(target, source, bytes);
}

DEFINE_ROWS(portable, )

#if LRV_X86

/* A vector of neighbouring outputs reads a short window of the source. The window is held in
 * registers and permuted once per tap, where a gather would cost a load per pixel. Rows have
 * room behind their end for a whole window (see SLACK in native.c). */

#define AVX2_TARGET __attribute__((target("avx2,fma")))
#define AVX512_TARGET \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")))

/* `taps` is a constant where it is 2 or 4, so that the loops over it disappear. */

AVX2_TARGET ALWAYS_INLINE void horizontal_avx2_taps(float *row, const float *source,
                                                    const Axis *axis, int taps) {
    const __m256i one = _mm256_set1_epi32(1);
    for (int i = 0; i < axis->outputs; i += 8) {
        const int32_t *first = axis->first + i;
        const float *weight = axis->weight + i;
        int origin = first[0] < first[7] ? first[0] : first[7];
        const float *window = source + origin;
        __m256i at = _mm256_sub_epi32(_mm256_loadu_si256((const __m256i *)first),
                                      _mm256_set1_epi32(origin));
        __m256 sum = _mm256_setzero_ps();
        if (axis->span8 <= 8) {
            __m256 a = _mm256_loadu_ps(window);
            for (int k = 0; k < taps; k++, weight += axis->stride) {
                sum = _mm256_fmadd_ps(_mm256_loadu_ps(weight), _mm256_permutevar8x32_ps(a, at),
                                      sum);
                at = _mm256_add_epi32(at, one);
            }
        } else if (axis->span8 <= 16) {
            __m256 a = _mm256_loadu_ps(window), b = _mm256_loadu_ps(window + 8);
            for (int k = 0; k < taps; k++, weight += axis->stride) {
                __m256 in_b = _mm256_castsi256_ps(_mm256_cmpgt_epi32(at, _mm256_set1_epi32(7)));
                __m256 pixel = _mm256_blendv_ps(_mm256_permutevar8x32_ps(a, at),
                                                _mm256_permutevar8x32_ps(b, at), in_b);
                sum = _mm256_fmadd_ps(_mm256_loadu_ps(weight), pixel, sum);
                at = _mm256_add_epi32(at, one);
            }
        } else {
            for (int k = 0; k < taps; k++, weight += axis->stride) {
                __m256 pixel = _mm256_i32gather_ps(window + k, at, 4);
                sum = _mm256_fmadd_ps(_mm256_loadu_ps(weight), pixel, sum);
            }
        }
        _mm256_storeu_ps(row + i, sum);
    }
}

AVX2_TARGET static void horizontal_avx2(float *row, const float *source, const Axis *axis) {
    if (axis->taps == 2) horizontal_avx2_taps(row, source, axis, 2);
    else if (axis->taps == 4) horizontal_avx2_taps(row, source, axis, 4);
    else horizontal_avx2_taps(row, source, axis, axis->taps);
}

AVX2_TARGET static void combine_stream_avx2(float *row, const float *const *rows,
                                            const float *weights, int count, int width) {
    for (int i = 0; i < width; i += 8) {
        __m256 sum = _mm256_mul_ps(_mm256_set1_ps(weights[0]), _mm256_loadu_ps(rows[0] + i));
        for (int k = 1; k < count; k++) {
            sum = _mm256_fmadd_ps(_mm256_set1_ps(weights[k]), _mm256_loadu_ps(rows[k] + i), sum);
        }
        _mm256_stream_ps(row + i, sum);
    }
}

AVX2_TARGET static void stream_avx2(void *target, const void *source, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 32) {
        __m256i part = _mm256_loadu_si256((const __m256i *)((const char *)source + i));
        _mm256_stream_si256((__m256i *)((char *)target + i), part);
    }
}

AVX512_TARGET ALWAYS_INLINE void horizontal_avx512_taps(float *row, const float *source,
                                                        const Axis *axis, int taps) {
    const __m512i one = _mm512_set1_epi32(1), second_half = _mm512_set1_epi32(32);
    for (int i = 0; i < axis->outputs; i += 16) {
        const int32_t *first = axis->first + i;
        const float *weight = axis->weight + i;
        int origin = first[0] < first[15] ? first[0] : first[15];
        const float *window = source + origin;
        __m512i at = _mm512_sub_epi32(_mm512_loadu_si512(first), _mm512_set1_epi32(origin));
        __m512 sum = _mm512_setzero_ps();
        if (axis->span16 <= 16) {
            __m512 a = _mm512_loadu_ps(window);
            for (int k = 0; k < taps; k++, weight += axis->stride) {
                sum = _mm512_fmadd_ps(_mm512_loadu_ps(weight), _mm512_permutexvar_ps(at, a), sum);
                at = _mm512_add_epi32(at, one);
            }
        } else if (axis->span16 <= 32) {
            __m512 a = _mm512_loadu_ps(window), b = _mm512_loadu_ps(window + 16);
            for (int k = 0; k < taps; k++, weight += axis->stride) {
                __m512 pixel = _mm512_permutex2var_ps(a, at, b);
                sum = _mm512_fmadd_ps(_mm512_loadu_ps(weight), pixel, sum);
                at = _mm512_add_epi32(at, one);
            }
        } else if (axis->span16 <= 64) {
            __m512 a = _mm512_loadu_ps(window), b = _mm512_loadu_ps(window + 16);
            __m512 c = _mm512_loadu_ps(window + 32), d = _mm512_loadu_ps(window + 48);
            for (int k = 0; k < taps; k++, weight += axis->stride) {
                __mmask16 late = _mm512_test_epi32_mask(at, second_half);
                __m512 pixel = _mm512_mask_blend_ps(late, _mm512_permutex2var_ps(a, at, b),
                                                    _mm512_permutex2var_ps(c, at, d));
                sum = _mm512_fmadd_ps(_mm512_loadu_ps(weight), pixel, sum);
                at = _mm512_add_epi32(at, one);
            }
        } else {
            for (int k = 0; k < taps; k++, weight += axis->stride) {
                __m512 pixel = _mm512_i32gather_ps(at, window + k, 4);
                sum = _mm512_fmadd_ps(_mm512_loadu_ps(weight), pixel, sum);
            }
        }
        _mm512_storeu_ps(row + i, sum);
    }
}

AVX512_TARGET static void horizontal_avx512(float *row, const float *source, const Axis *axis) {
    if (axis->taps == 2) horizontal_avx512_taps(row, source, axis, 2);
    else if (axis->taps == 4) horizontal_avx512_taps(row, source, axis, 4);
    else horizontal_avx512_taps(row, source, axis, axis->taps);
}

AVX512_TARGET static void combine_stream_avx512(float *row, const float *const *rows,
                                                const float *weights, int count, int width) {
    if (count == 2) {
        const float *r0 = rows[0], *r1 = rows[1];
        __m512 u = _mm512_set1_ps(weights[0]), v = _mm512_set1_ps(weights[1]);
        for (int i = 0; i < width; i += 16) {
            __m512 sum = _mm512_mul_ps(u, _mm512_loadu_ps(r0 + i));
            _mm512_stream_ps(row + i, _mm512_fmadd_ps(v, _mm512_loadu_ps(r1 + i), sum));
        }
        return;
    }
    for (int i = 0; i < width; i += 16) {
        __m512 sum = _mm512_mul_ps(_mm512_set1_ps(weights[0]), _mm512_loadu_ps(rows[0] + i));
        for (int k = 1; k < count; k++) {
            sum = _mm512_fmadd_ps(_mm512_set1_ps(weights[k]), _mm512_loadu_ps(rows[k] + i), sum);
        }
        _mm512_stream_ps(row + i, sum);
    }
}

AVX512_TARGET static void stream_avx512(void *target, const void *source, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) {
        __m512i part = _mm512_loadu_si512((const char *)source + i);
        _mm512_stream_si512((__m512i *)((char *)target + i), part);
    }
}

DEFINE_ROWS(avx2, AVX2_TARGET)
DEFINE_ROWS(avx512, AVX512_TARGET)

#endif

/* The best instruction set of this machine. */
static int rows_supported(void) {
#if LRV_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return PORTABLE;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        return AVX512;
    }
    return AVX2;
#else
    return PORTABLE;
#endif
}

static const RowKernels *rows_kernels(int set) {
#if LRV_X86
    if (set == AVX512) return &ROWS_avx512;
    if (set == AVX2) return &ROWS_avx2;
#endif
    (void)set;
    return &ROWS_portable;
}

/* Make streamed stores visible to other threads. */
static void stream_end(void) {
#if LRV_X86
    _mm_sfence();
#endif
}

#endif
