/* What is done to one row of pixels, in several instruction sets.
 *
 * The bodies are plain C, inlined into one function per instruction set, where the compiler
 * vectorises them; native_rows_x86.h writes by hand what has to permute, to convert or to bypass
 * the caches. Which set serves is chosen per call, so one library runs on every machine of its
 * architecture.
 */
#ifndef LRV_NATIVE_ROWS_H
#define LRV_NATIVE_ROWS_H

#include <stdint.h>
#include <string.h>

#include "native_axis.h"
#include "native_bytes.h"

enum { PORTABLE, AVX2, AVX512, AVX512BF16 };
enum { UINT8, FLOAT16, BFLOAT16, FLOAT32 };

static const int TYPE_BYTES[] = {1, 2, 2, 4};

/* Those with `stream` may write past the caches where it is set; the target then lies on a cache
 * line and the row fills whole lines. */
typedef struct {
    /* row[i] = gain * source[i * step] + bias; step in elements */
    void (*load)(float *row, const void *source, int type, ptrdiff_t step, int count, float gain,
                 float bias);
    /* row[i] = sum_k weight[k][i] * source[first[i] + k] */
    void (*horizontal)(float *row, const float *source, const Axis *axis);
    /* target = sum of count weighted rows, in the result's type */
    void (*combine)(void *target, const float *const *rows, const float *weights, int count,
                    int width, int type, int stream);
    /* row = a * row + (1 - a) * other */
    void (*blend)(float *row, const float *other, float a, int width);
    /* row of floats to the result's type */
    void (*store)(void *target, const float *row, int type, int width, int stream);
    /* one row per channel, `pitch` bytes apart, to pixels of elements of 2 or 4 bytes */
    void (*interleave)(void *target, const void *rows, size_t pitch, int bytes, int channels,
                       int width, int stream);
    /* a row of bytes, its pixels `step` apart, to one of another length */
    void (*filter_bytes)(uint8_t *target, const uint8_t *source, ptrdiff_t step,
                         const ByteAxis *axis);
    /* target = sum of count weighted rows of `width` bytes */
    void (*sum_bytes)(uint8_t *target, const uint8_t *rows, const int32_t *weights, int count,
                      int width);
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
    /* A constant step is what lets the compiler vectorise. */
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

ALWAYS_INLINE void horizontal_body(float *restrict row, const float *restrict source,
                                   const Axis *axis, int taps) {
    size_t stride = (size_t)axis->stride;
    for (int i = 0; i < axis->outputs; i++) {
        const float *pixel = source + axis->first[i], *weight = axis->weight + i;
        float sum = weight[0] * pixel[0];
        for (int k = 1; k < taps; k++) sum += weight[(size_t)k * stride] * pixel[k];
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

/* Columns [begin, begin + width) of up to four rows at a time, which is all of them when enlarging. */
ALWAYS_INLINE void combine_floats(float *restrict row, const float *const *rows,
                                  const float *weights, int count, int begin, int width) {
    if (count == 0) memset(row, 0, sizeof(float) * (size_t)width);
    for (int k = 0; k < count; k += 4) {
        const float *a = rows[k] + begin, *b = k + 1 < count ? rows[k + 1] + begin : a;
        const float *c = k + 2 < count ? rows[k + 2] + begin : a;
        const float *d = k + 3 < count ? rows[k + 3] + begin : a;
        float u = weights[k], v = k + 1 < count ? weights[k + 1] : 0;
        float w = k + 2 < count ? weights[k + 2] : 0, z = k + 3 < count ? weights[k + 3] : 0;
        if (k) {
            for (int i = 0; i < width; i++) row[i] += u * a[i] + v * b[i] + w * c[i] + z * d[i];
        } else if (count == 1) {
            for (int i = 0; i < width; i++) row[i] = u * a[i];
        } else if (count == 2) {
            for (int i = 0; i < width; i++) row[i] = u * a[i] + v * b[i];
        } else {
            for (int i = 0; i < width; i++) row[i] = u * a[i] + v * b[i] + w * c[i] + z * d[i];
        }
    }
}

ALWAYS_INLINE void combine_body(void *target, const float *const *rows, const float *weights,
                                int count, int width, int type) {
    if (type == FLOAT32) {
        combine_floats(target, rows, weights, count, 0, width);
        return;
    }
    for (int i = 0; i < width; i += 64) {
        float part[64];
        int lanes = width - i < 64 ? width - i : 64;
        combine_floats(part, rows, weights, count, i, lanes);
        store_body((uint16_t *)target + i, part, type, lanes);
    }
}

/* Constant counts of channels are unrolled, which lets the compiler vectorise colours. */
#define INTERLEAVE(element, count)                                                              \
    for (int i = 0; i < width; i++) {                                                           \
        for (int c = 0; c < count; c++) {                                                       \
            ((element *)target)[(ptrdiff_t)i * count + c] =                                     \
                ((const element *)((const char *)rows + (size_t)c * pitch))[i];                 \
        }                                                                                       \
    }

ALWAYS_INLINE void interleave_body(void *restrict target, const void *restrict rows, size_t pitch,
                                   int bytes, int channels, int width) {
    if (bytes == 2 && channels == 3) {
        INTERLEAVE(uint16_t, 3)
    } else if (bytes == 2) {
        INTERLEAVE(uint16_t, channels)
    } else if (channels == 3) {
        INTERLEAVE(float, 3)
    } else {
        INTERLEAVE(float, channels)
    }
}

static void load_portable(float *row, const void *source, int type, ptrdiff_t step, int count,
                          float gain, float bias) {
    load_body(row, source, type, step, count, gain, bias);
}

static void blend_portable(float *row, const float *other, float a, int width) {
    blend_body(row, other, a, width);
}

static void horizontal_portable(float *row, const float *source, const Axis *axis) {
    if (axis->taps == 2) horizontal_body(row, source, axis, 2);
    else if (axis->taps == 4) horizontal_body(row, source, axis, 4);
    else horizontal_body(row, source, axis, axis->taps);
}

static void combine_portable(void *target, const float *const *rows, const float *weights,
                             int count, int width, int type, int stream) {
    (void)stream;
    combine_body(target, rows, weights, count, width, type);
}

static void store_portable(void *target, const float *row, int type, int width, int stream) {
    (void)stream;
    store_body(target, row, type, width);
}

static void interleave_portable(void *target, const void *rows, size_t pitch, int bytes,
                                int channels, int width, int stream) {
    (void)stream;
    interleave_body(target, rows, pitch, bytes, channels, width);
}

static void filter_bytes_portable(uint8_t *target, const uint8_t *source, ptrdiff_t step,
                                  const ByteAxis *axis) {
    filter_bytes_body(target, source, step, axis);
}

static void sum_bytes_portable(uint8_t *target, const uint8_t *rows, const int32_t *weights,
                               int count, int width) {
    sum_bytes_body(target, rows, weights, count, width);
}

static const RowKernels ROWS_PORTABLE = {
    load_portable,  horizontal_portable, combine_portable,      blend_portable,
    store_portable, interleave_portable, filter_bytes_portable, sum_bytes_portable,
};

#if defined(__GNUC__) && defined(__x86_64__)

#include "native_rows_x86.h"

#else

static int rows_supported(void) { return PORTABLE; }

static const RowKernels *rows_kernels(int set) {
    (void)set;
    return &ROWS_PORTABLE;
}

/* Make streamed stores visible to other threads. */
static void rows_end(void) {}

#endif
#endif
