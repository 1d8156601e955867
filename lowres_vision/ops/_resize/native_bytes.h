/* Bytes to bytes as Pillow resizes them: columns, then rows, each pass rounded to eight bits.
 *
 * Weights are Pillow's integers of 22 bits behind the point: 8 bits of pixel, 22 of weight and what
 * a bicubic filter overshoots fit 32. The sums are exact, so the result is Pillow's to the bit.
 */
#ifndef LRV_NATIVE_BYTES_H
#define LRV_NATIVE_BYTES_H

#include "native_axis.h"

#define FRACTION 22

typedef struct {
    int offset;      /* the box's first pixel */
    int inputs;      /* pixels of the box */
    int outputs;     /* pixels made */
    int taps;        /* room for weights per output */
    int32_t *first;  /* [outputs] */
    int32_t *count;  /* [outputs] */
    int32_t *weight; /* [outputs][taps] */
    size_t room;     /* of all three, which are one block at `first` */
} ByteAxis;

static int byte_axis_set(ByteAxis *axis, const AxisKey *key) {
    Span box = axis_span(key);
    double scale = box.extent / key->size, widen = scale > 1 ? scale : 1, inverse = 1 / widen;
    double support = (key->bicubic ? 2 : 1) * widen;
    int taps = clamp_int(ceil_int(2 * support), 1, box.high - box.low + 1);
    size_t outputs = (size_t)key->size, room = outputs * (2 + (size_t)taps);
    if (room > axis->room) {
        free(axis->first);
        axis->first = malloc(sizeof(int32_t) * room);
        axis->room = axis->first ? room : 0;
        if (!axis->first) return -1;
    }
    axis->offset = box.low;
    axis->inputs = box.high - box.low + 1;
    axis->outputs = key->size;
    axis->taps = taps;
    axis->count = axis->first + outputs;
    axis->weight = axis->count + outputs;
    for (int i = 0; i < key->size; i++) {
        double centre = box.start + (i + 0.5) * scale;
        int out = key->flip ? key->size - 1 - i : i;
        int32_t *weight = axis->weight + (size_t)out * (size_t)taps;
        Window window = axis_window(centre, support, taps, &box);
        double sum = 0;
        for (int j = window.from; j <= window.to; j++) {
            sum += filter((j + 0.5 - centre) * inverse, key->bicubic, -0.5);
        }
        for (int j = window.from; j <= window.to; j++) {
            double share = filter((j + 0.5 - centre) * inverse, key->bicubic, -0.5) / sum;
            double fixed = share * (1 << FRACTION);
            *weight++ = (int32_t)(fixed + (fixed < 0 ? -0.5 : 0.5));
        }
        axis->first[out] = window.from - box.low;
        axis->count[out] = window.to - window.from + 1;
    }
    return 0;
}

ALWAYS_INLINE uint8_t byte_from_sum(int32_t sum) {
    sum = (sum + (1 << (FRACTION - 1))) >> FRACTION;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

ALWAYS_INLINE void filter_bytes_body(uint8_t *restrict target, const uint8_t *restrict source,
                                     ptrdiff_t step, const ByteAxis *axis) {
    for (int i = 0; i < axis->outputs; i++) {
        const uint8_t *pixel = source + axis->first[i] * step;
        const int32_t *weight = axis->weight + (size_t)i * (size_t)axis->taps;
        int32_t sum = 0;
        for (int k = 0; k < axis->count[i]; k++) sum += weight[k] * pixel[k * step];
        target[i] = byte_from_sum(sum);
    }
}

/* Rows lie `width` bytes apart. */
ALWAYS_INLINE void sum_bytes_body(uint8_t *restrict target, const uint8_t *restrict rows,
                                  const int32_t *weights, int count, int width) {
    for (int i = 0; i < width; i += 64) {
        int32_t sums[64] = {0};
        int lanes = width - i < 64 ? width - i : 64;
        for (int k = 0; k < count; k++) {
            const uint8_t *row = rows + (size_t)k * (size_t)width + i;
            for (int j = 0; j < lanes; j++) sums[j] += weights[k] * row[j];
        }
        for (int j = 0; j < lanes; j++) target[i + j] = byte_from_sum(sums[j]);
    }
}

#endif
