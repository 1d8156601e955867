/* Rows in AVX2 and AVX-512, for compilers that know GCC's target attributes. */
#ifndef LRV_NATIVE_ROWS_X86_H
#define LRV_NATIVE_ROWS_X86_H

#include <immintrin.h>

/* Every processor with AVX2 has FMA and F16C. */
#define AVX2_TARGET __attribute__((target("avx2,fma,f16c")))
#define AVX512_SET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#if defined(__clang__)
#define AVX512_TARGET __attribute__((target(AVX512_SET)))
#define AVX512BF16_TARGET __attribute__((target(AVX512_SET ",avx512bf16")))
#else /* GCC would otherwise vectorise plain loops in halves */
#define AVX512_TARGET __attribute__((target(AVX512_SET ",prefer-vector-width=512")))
#define AVX512BF16_TARGET \
    __attribute__((target(AVX512_SET ",avx512bf16,prefer-vector-width=512")))
#endif

/* Every third of 46 bytes, and no byte beyond them. */
AVX2_TARGET ALWAYS_INLINE __m128i every_third_byte(const uint8_t *bytes) {
    const char x = -1; /* taken from none */
    __m128i a = _mm_loadu_si128((const __m128i *)bytes);
    __m128i b = _mm_loadu_si128((const __m128i *)(bytes + 16));
    __m128i c = _mm_loadu_si128((const __m128i *)(bytes + 30));
    a = _mm_shuffle_epi8(a, _mm_setr_epi8(0, 3, 6, 9, 12, 15, x, x, x, x, x, x, x, x, x, x));
    b = _mm_shuffle_epi8(b, _mm_setr_epi8(x, x, x, x, x, x, 2, 5, 8, 11, 14, x, x, x, x, x));
    c = _mm_shuffle_epi8(c, _mm_setr_epi8(x, x, x, x, x, x, x, x, x, x, x, 3, 6, 9, 12, 15));
    return _mm_or_si128(_mm_or_si128(a, b), c);
}

AVX2_TARGET static void load_avx2(float *row, const void *source, int type, ptrdiff_t step,
                                  int count, float gain, float bias) {
    int i = 0;
    if (type == UINT8 && step == 3) {
        __m256 g = _mm256_set1_ps(gain), b = _mm256_set1_ps(bias);
        for (; i + 16 <= count; i += 16) {
            __m128i bytes = every_third_byte((const uint8_t *)source + 3 * i);
            __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
            __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)));
            _mm256_storeu_ps(row + i, _mm256_fmadd_ps(low, g, b));
            _mm256_storeu_ps(row + i + 8, _mm256_fmadd_ps(high, g, b));
        }
    }
    const char *rest = (const char *)source + i * step * TYPE_BYTES[type];
    load_body(row + i, rest, type, step, count - i, gain, bias);
}

AVX512_TARGET static void load_avx512(float *row, const void *source, int type, ptrdiff_t step,
                                      int count, float gain, float bias) {
    int i = 0;
    if (type == UINT8 && step == 3) {
        __m512 g = _mm512_set1_ps(gain), b = _mm512_set1_ps(bias);
        for (; i + 16 <= count; i += 16) {
            __m128i bytes = every_third_byte((const uint8_t *)source + 3 * i);
            __m512 pixels = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
            _mm512_storeu_ps(row + i, _mm512_fmadd_ps(pixels, g, b));
        }
    }
    const char *rest = (const char *)source + i * step * TYPE_BYTES[type];
    load_body(row + i, rest, type, step, count - i, gain, bias);
}

AVX2_TARGET static void blend_avx2(float *row, const float *other, float a, int width) {
    blend_body(row, other, a, width);
}

AVX512_TARGET static void blend_avx512(float *row, const float *other, float a, int width) {
    blend_body(row, other, a, width);
}

/* Horizontal: neighbouring outputs read a short window of the source. The window is held in
 * registers and permuted once per tap, where a gather would cost a load per pixel. Rows have
 * room behind their end for a whole window (SLACK in native.c). `taps` is a constant where it is
 * 2 or 4, so that the loops over it disappear. */

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

#define DEFINE_HORIZONTAL(set, attribute)                                                       \
    attribute static void horizontal_##set(float *row, const float *source, const Axis *axis) { \
        if (axis->taps == 2) horizontal_##set##_taps(row, source, axis, 2);                     \
        else if (axis->taps == 4) horizontal_##set##_taps(row, source, axis, 4);                \
        else horizontal_##set##_taps(row, source, axis, axis->taps);                            \
    }

DEFINE_HORIZONTAL(avx2, AVX2_TARGET)
DEFINE_HORIZONTAL(avx512, AVX512_TARGET)

/* Stores of 32 (AVX2: 16) floats in the result's type; the target of a stream is aligned. */

AVX2_TARGET ALWAYS_INLINE __m256i bfloat_bits_avx2(__m256 value) {
    __m256i bits = _mm256_castps_si256(value);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
}

AVX2_TARGET ALWAYS_INLINE void put_avx2(void *target, int at, __m256 low, __m256 high, int type,
                                        int stream) {
    if (type == FLOAT32) {
        float *to = (float *)target + at;
        if (stream) _mm256_stream_ps(to, low), _mm256_stream_ps(to + 8, high);
        else _mm256_storeu_ps(to, low), _mm256_storeu_ps(to + 8, high);
        return;
    }
    __m256i words;
    if (type == FLOAT16) {
        words = _mm256_set_m128i(_mm256_cvtps_ph(high, 0), _mm256_cvtps_ph(low, 0));
    } else {
        words = _mm256_packus_epi32(bfloat_bits_avx2(low), bfloat_bits_avx2(high));
        words = _mm256_permute4x64_epi64(words, 0xd8);
    }
    __m256i *to = (__m256i *)((uint16_t *)target + at);
    if (stream) _mm256_stream_si256(to, words);
    else _mm256_storeu_si256(to, words);
}

/* The bits of bfloat16s, each in the upper half of its lane. */
AVX512_TARGET ALWAYS_INLINE __m512i bfloat_bits_avx512(__m512 value) {
    __m512i bits = _mm512_castps_si512(value);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return _mm512_mask_mov_epi32(_mm512_add_epi32(bits, half), nan,
                                 _mm512_set1_epi32(0x7fc00000));
}

static const int16_t UPPER_HALVES[32] = {
    1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
    33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63,
};

AVX512_TARGET ALWAYS_INLINE __m512i bfloats_avx512(__m512 low, __m512 high) {
    return _mm512_permutex2var_epi16(bfloat_bits_avx512(low), _mm512_loadu_si512(UPPER_HALVES),
                                     bfloat_bits_avx512(high));
}

AVX512_TARGET ALWAYS_INLINE void put_words_avx512(void *target, int at, __m512i words,
                                                  int stream) {
    __m512i *to = (__m512i *)((uint16_t *)target + at);
    if (stream) _mm512_stream_si512(to, words);
    else _mm512_storeu_si512(to, words);
}

AVX512_TARGET ALWAYS_INLINE void put_avx512(void *target, int at, __m512 low, __m512 high,
                                            int type, int stream) {
    if (type == FLOAT32) {
        float *to = (float *)target + at;
        if (stream) _mm512_stream_ps(to, low), _mm512_stream_ps(to + 16, high);
        else _mm512_storeu_ps(to, low), _mm512_storeu_ps(to + 16, high);
    } else if (type == FLOAT16) {
        __m512i first = _mm512_castsi256_si512(_mm512_cvtps_ph(low, 0));
        put_words_avx512(target, at, _mm512_inserti64x4(first, _mm512_cvtps_ph(high, 0), 1),
                         stream);
    } else {
        put_words_avx512(target, at, bfloats_avx512(low, high), stream);
    }
}

/* The processor's own conversion takes subnormals for zero and keeps what a NaN carries. */
AVX512BF16_TARGET ALWAYS_INLINE void put_avx512bf16(void *target, int at, __m512 low,
                                                    __m512 high, int type, int stream) {
    const int nan_or_subnormal = 0x80 | 0x20 | 0x01;
    if (type != BFLOAT16) {
        put_avx512(target, at, low, high, type, stream);
        return;
    }
    __m512i words = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    __mmask16 odd_low = _mm512_fpclass_ps_mask(low, nan_or_subnormal);
    __mmask16 odd_high = _mm512_fpclass_ps_mask(high, nan_or_subnormal);
    if (__builtin_expect(odd_low | odd_high, 0)) words = bfloats_avx512(low, high);
    put_words_avx512(target, at, words, stream);
}

#define DEFINE_STORE(set, attribute, lanes, load)                                               \
    attribute static void store_##set(void *target, const float *row, int type, int width,      \
                                      int stream) {                                             \
        int i = 0;                                                                              \
        for (; i + 2 * lanes <= width; i += 2 * lanes) {                                        \
            put_##set(target, i, load(row + i), load(row + i + lanes), type, stream);           \
        }                                                                                       \
        store_body((char *)target + i * TYPE_BYTES[type], row + i, type, width - i);            \
    }

DEFINE_STORE(avx2, AVX2_TARGET, 8, _mm256_loadu_ps)
DEFINE_STORE(avx512, AVX512_TARGET, 16, _mm512_loadu_ps)
DEFINE_STORE(avx512bf16, AVX512BF16_TARGET, 16, _mm512_loadu_ps)

/* Combine: four vectors at a time, so that a weight serves four sums. */

#define DEFINE_COMBINE(set, attribute, vector, lanes, load, set1, zero, fmadd)                  \
    attribute ALWAYS_INLINE void combine_##set##_count(void *target, const float *const *rows,  \
                                                       const float *weights, int count,         \
                                                       int width, int type, int stream) {       \
        int i = 0;                                                                              \
        for (; i + 4 * lanes <= width; i += 4 * lanes) {                                        \
            vector sums[4] = {zero(), zero(), zero(), zero()};                                  \
            for (int k = 0; k < count; k++) {                                                   \
                vector weight = set1(weights[k]);                                               \
                for (int j = 0; j < 4; j++) {                                                   \
                    sums[j] = fmadd(weight, load(rows[k] + i + lanes * j), sums[j]);            \
                }                                                                               \
            }                                                                                   \
            put_##set(target, i, sums[0], sums[1], type, stream);                               \
            put_##set(target, i + 2 * lanes, sums[2], sums[3], type, stream);                   \
        }                                                                                       \
        for (; i + 2 * lanes <= width; i += 2 * lanes) {                                        \
            vector low = zero(), high = zero();                                                 \
            for (int k = 0; k < count; k++) {                                                   \
                vector weight = set1(weights[k]);                                               \
                low = fmadd(weight, load(rows[k] + i), low);                                    \
                high = fmadd(weight, load(rows[k] + i + lanes), high);                          \
            }                                                                                   \
            put_##set(target, i, low, high, type, stream);                                      \
        }                                                                                       \
        float rest[2 * lanes];                                                                  \
        for (int j = 0; j < width - i; j++) {                                                   \
            rest[j] = 0;                                                                        \
            for (int k = 0; k < count; k++) rest[j] += weights[k] * rows[k][i + j];             \
        }                                                                                       \
        store_body((char *)target + i * TYPE_BYTES[type], rest, type, width - i);               \
    }                                                                                           \
    attribute static void combine_##set(void *target, const float *const *rows,                 \
                                        const float *weights, int count, int width, int type,   \
                                        int stream) {                                           \
        if (count == 2 && type == FLOAT32 && stream) {                                          \
            combine_##set##_count(target, rows, weights, 2, width, FLOAT32, 1);                 \
        } else if (count == 2 && type == FLOAT32) {                                             \
            combine_##set##_count(target, rows, weights, 2, width, FLOAT32, 0);                 \
        } else if (count == 2 && type == BFLOAT16) {                                            \
            combine_##set##_count(target, rows, weights, 2, width, BFLOAT16, stream);           \
        } else if (count == 4 && type == FLOAT32) {                                             \
            combine_##set##_count(target, rows, weights, 4, width, FLOAT32, stream);            \
        } else if (count == 4 && type == BFLOAT16) {                                            \
            combine_##set##_count(target, rows, weights, 4, width, BFLOAT16, stream);           \
        } else {                                                                                \
            combine_##set##_count(target, rows, weights, count, width, type, stream);           \
        }                                                                                       \
    }

DEFINE_COMBINE(avx2, AVX2_TARGET, __m256, 8, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps,
               _mm256_fmadd_ps)
DEFINE_COMBINE(avx512, AVX512_TARGET, __m512, 16, _mm512_loadu_ps, _mm512_set1_ps,
               _mm512_setzero_ps, _mm512_fmadd_ps)
DEFINE_COMBINE(avx512bf16, AVX512BF16_TARGET, __m512, 16, _mm512_loadu_ps, _mm512_set1_ps,
               _mm512_setzero_ps, _mm512_fmadd_ps)

AVX2_TARGET static void interleave_avx2(void *target, const void *rows, size_t pitch, int bytes,
                                        int channels, int width, int stream) {
    (void)stream;
    interleave_body(target, rows, pitch, bytes, channels, width);
}

/* Lane i of the v-th of three vectors is channel (16 v + i) % 3 of pixel (16 v + i) / 3. The first
 * permutation picks from red and green (16 and up), the second keeps these and fills in blue. */
static const int32_t RED_GREEN[3][16] = {
    {0, 16, 0, 1, 17, 1, 2, 18, 2, 3, 19, 3, 4, 20, 4, 5},
    {21, 5, 6, 22, 6, 7, 23, 7, 8, 24, 8, 9, 25, 9, 10, 26},
    {10, 11, 27, 11, 12, 28, 12, 13, 29, 13, 14, 30, 14, 15, 31, 15},
};
static const int32_t WITH_BLUE[3][16] = {
    {0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15},
    {0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15},
    {26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31},
};

AVX512_TARGET static void interleave_avx512(void *target, const void *rows, size_t pitch,
                                            int bytes, int channels, int width, int stream) {
    int i = 0;
    if (channels == 3 && bytes == 4) {
        const float *r = rows;
        const float *g = (const float *)((const char *)rows + pitch);
        const float *b = (const float *)((const char *)rows + 2 * pitch);
        for (; i + 16 <= width; i += 16) {
            __m512 red = _mm512_loadu_ps(r + i), green = _mm512_loadu_ps(g + i);
            __m512 blue = _mm512_loadu_ps(b + i);
            for (int v = 0; v < 3; v++) {
                __m512 pixels =
                    _mm512_permutex2var_ps(red, _mm512_loadu_si512(RED_GREEN[v]), green);
                pixels = _mm512_permutex2var_ps(pixels, _mm512_loadu_si512(WITH_BLUE[v]), blue);
                float *to = (float *)target + 3 * i + 16 * v;
                if (stream) _mm512_stream_ps(to, pixels);
                else _mm512_storeu_ps(to, pixels);
            }
        }
    }
    size_t done = (size_t)i * (size_t)bytes;
    interleave_body((char *)target + (size_t)channels * done, (const char *)rows + done, pitch,
                    bytes, channels, width - i);
}

#define DEFINE_BYTES(set, attribute)                                                            \
    attribute static void filter_bytes_##set(uint8_t *target, const uint8_t *source,            \
                                             ptrdiff_t step, const ByteAxis *axis) {            \
        filter_bytes_body(target, source, step, axis);                                          \
    }                                                                                           \
    attribute static void sum_bytes_##set(uint8_t *target, const uint8_t *rows,                 \
                                          const int32_t *weights, int count, int width) {       \
        sum_bytes_body(target, rows, weights, count, width);                                    \
    }

DEFINE_BYTES(avx2, AVX2_TARGET)
DEFINE_BYTES(avx512, AVX512_TARGET)

static const RowKernels ROWS_AVX2 = {
    load_avx2,  horizontal_avx2, combine_avx2,      blend_avx2,
    store_avx2, interleave_avx2, filter_bytes_avx2, sum_bytes_avx2,
};
static const RowKernels ROWS_AVX512 = {
    load_avx512,  horizontal_avx512, combine_avx512,      blend_avx512,
    store_avx512, interleave_avx512, filter_bytes_avx512, sum_bytes_avx512,
};
static const RowKernels ROWS_AVX512BF16 = {
    load_avx512,      horizontal_avx512, combine_avx512bf16,  blend_avx512,
    store_avx512bf16, interleave_avx512, filter_bytes_avx512, sum_bytes_avx512,
};

/* The best instruction set of this machine. */
static int rows_supported(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return PORTABLE;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        return __builtin_cpu_supports("avx512bf16") ? AVX512BF16 : AVX512;
    }
    return AVX2;
}

static const RowKernels *rows_kernels(int set) {
    static const RowKernels *const kernels[] = {&ROWS_PORTABLE, &ROWS_AVX2, &ROWS_AVX512,
                                                &ROWS_AVX512BF16};
    return kernels[set];
}

/* Make streamed stores visible to other threads. */
static void rows_end(void) { _mm_sfence(); }

#endif
