/* One axis of a resize as a table of taps; the maths is that of taps.py, in double precision.
 *
 * Output i is the sum over k < taps of weight[k][i] * input[first[i] + k]. Indices count from the
 * box's first pixel, and what would fall outside the box has been folded onto its edge, so a row
 * needs no padding but `taps` finite values after its end, which meet weights of zero.
 *
 * The backward pass is the same sum with the transposed table: input pixels are then the outputs.
 */
#ifndef LRV_NATIVE_AXIS_H
#define LRV_NATIVE_AXIS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#else
#define ALWAYS_INLINE static inline
#endif

#define LRV_LANES 16 /* tables and rows are padded to whole vectors of the widest kind */

/* Memory on a cache line: a vector that straddles two costs twice (64 images 64 -> 224 in
 * bfloat16 on one core: 2.6 against 1.7 ms). */
static void *lines_alloc(size_t bytes) {
    char *block = malloc(bytes + 64 + sizeof(void *));
    if (!block) return NULL;
    char *start = block + sizeof(void *);
    start += -(uintptr_t)start & 63;
    memcpy(start - sizeof(void *), &block, sizeof(void *));
    return start;
}

static void lines_free(void *start) {
    void *block;
    if (!start) return;
    memcpy(&block, (char *)start - sizeof(void *), sizeof(void *));
    free(block);
}

static int whole_lanes(int count) { return (count + LRV_LANES - 1) / LRV_LANES * LRV_LANES; }

typedef struct {
    double start, extent;
    int length, size, bicubic, antialias, flip, transposed;
} AxisKey;

typedef struct {
    AxisKey key;
    int offset;      /* the box's first pixel */
    int inputs;      /* pixels read: those of the box, or of the gradient when transposed */
    int outputs;     /* pixels made */
    int taps;        /* weights per output */
    int stride;      /* outputs rounded up to LRV_LANES */
    int span16;      /* most inputs that 16 neighbouring outputs span */
    int span8;       /* the same for 8 */
    int32_t *first;  /* [stride] */
    int32_t *count;  /* [stride], taps up to the last that is not zero */
    float *weight;   /* [taps][stride] */
    size_t capacity; /* of weight, in floats */
    int32_t room;    /* of first and count */
} Axis;

static void axis_free(Axis *axis) {
    lines_free(axis->first);
    lines_free(axis->count);
    lines_free(axis->weight);
}

/* Room for a table of zeros. Returns 0, or -1 where memory is short. */
static int axis_reserve(Axis *axis, int inputs, int outputs, int taps) {
    int stride = whole_lanes(outputs);
    size_t weights = (size_t)taps * (size_t)stride;
    if (stride > axis->room) {
        lines_free(axis->first);
        lines_free(axis->count);
        axis->first = lines_alloc(sizeof(int32_t) * (size_t)stride);
        axis->count = lines_alloc(sizeof(int32_t) * (size_t)stride);
        axis->room = axis->first && axis->count ? stride : 0;
        if (!axis->room) return -1;
    }
    if (weights > axis->capacity) {
        lines_free(axis->weight);
        axis->weight = lines_alloc(sizeof(float) * weights);
        axis->capacity = axis->weight ? weights : 0;
        if (!axis->weight) return -1;
    }
    memset(axis->weight, 0, sizeof(float) * weights);
    axis->inputs = inputs;
    axis->outputs = outputs;
    axis->taps = taps;
    axis->stride = stride;
    return 0;
}

/* Fill what follows from first and weight. */
static void axis_finish(Axis *axis) {
    for (int i = axis->outputs; i < axis->stride; i++) {
        axis->first[i] = axis->first[axis->outputs - 1];
    }
    int spans[2] = {0, 0};
    for (int wide = 0; wide < 2; wide++) {
        int lanes = wide ? 16 : 8;
        for (int begin = 0; begin < axis->stride; begin += lanes) {
            int low = axis->first[begin], high = low;
            for (int i = begin; i < begin + lanes; i++) {
                if (axis->first[i] < low) low = axis->first[i];
                if (axis->first[i] > high) high = axis->first[i];
            }
            int span = high - low + axis->taps;
            if (span > spans[wide]) spans[wide] = span;
        }
    }
    axis->span8 = spans[0];
    axis->span16 = spans[1];
    for (int i = 0; i < axis->stride; i++) {
        int count = axis->taps;
        while (count > 0 && axis->weight[(size_t)(count - 1) * axis->stride + i] == 0) count--;
        axis->count[i] = count;
    }
}

static double cubic(double x, double a) {
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
    return 0;
}

static double filter(double distance, int bicubic, double a) {
    double x = fabs(distance);
    if (bicubic) return cubic(x, a);
    return x < 1 ? 1 - x : 0;
}

/* Without the call that floor and ceil cost where SSE4.1 may not be assumed. */
static int floor_int(double x) {
    int below = (int)x;
    return below - (below > x);
}

static int ceil_int(double x) {
    int above = (int)x;
    return above + (above < x);
}

static int clamp_int(int value, int low, int high) {
    return value < low ? low : value > high ? high : value;
}

/* What a box reads: pixels [low, high]. */
typedef struct {
    double start, extent;
    int low, high;
} Span;

/* Values are checked at the public door. Here they are only kept from leading out of memory; fmin
 * and fmax also turn NaN into a bound. */
static Span axis_span(const AxisKey *key) {
    double length = key->length;
    Span box = {.start = fmin(fmax(key->start, 0), length),
                .extent = fmin(fmax(key->extent, 0), 2 * length)};
    box.low = clamp_int(floor_int(box.start), 0, key->length - 1);
    box.high = clamp_int(ceil_int(box.start + box.extent), box.low + 1, key->length) - 1;
    return box;
}

/* Pixels [from, to] of the box whose centres lie within `support` of an output's. */
typedef struct {
    int from, to;
} Window;

static Window axis_window(double centre, double support, int taps, const Span *box) {
    int from = clamp_int(floor_int(centre - support - 0.5) + 1, box->low, box->high);
    int to = clamp_int(ceil_int(centre + support - 0.5) - 1, from, box->high);
    if (to - from >= taps) to = from + taps - 1; /* by rounding; its weight is 0 */
    return (Window){from, to};
}

/* Two taps per output, which antialiasing leaves as they are when enlarging. Drawn boxes ask for
 * new tables with every image: this took a sixth of the time of 64 crops 64 -> 224, and takes a
 * fourth of that. */
static void axis_interpolate(Axis *axis, int low, int high, double start, double scale, int flip) {
    float *near = axis->weight, *far = axis->weight + axis->stride;
    for (int i = 0; i < axis->outputs; i++) {
        double centre = start + (i + 0.5) * scale - 0.5;
        int out = flip ? axis->outputs - 1 - i : i;
        int from = floor_int(centre);
        /* Beyond the outer centres, the outer pixel alone; a single pixel has no second. */
        double share = from < low || from >= high ? 0 : centre - from;
        near[out] = (float)(1 - share);
        if (axis->taps > 1) far[out] = (float)share;
        axis->first[out] = clamp_int(from, low, high) - low;
    }
}

static int axis_forward(Axis *axis, const AxisKey *key) {
    Span box = axis_span(key);
    double start = box.start;
    int low = box.low, high = box.high;
    double scale = box.extent / key->size;
    double widen = key->antialias && scale > 1 ? scale : 1;
    double support = (key->bicubic ? 2 : 1) * widen;
    int nearest = key->bicubic ? 4 : 2;
    int taps = nearest;
    /* An open interval holds at most as many pixel centres as it is long, rounded up. */
    if (key->antialias) taps = clamp_int(ceil_int(2 * support), 1, high - low + 1);
    double a = key->antialias ? -0.5 : -0.75;

    axis->offset = low;
    if (axis_reserve(axis, high - low + 1, key->size, taps)) return -1;
    if (!key->bicubic && (!key->antialias || scale <= 1)) {
        axis_interpolate(axis, low, high, start, scale, key->flip);
        return 0;
    }
    double inverse = 1 / widen;
    for (int i = 0; i < key->size; i++) {
        double centre = start + (i + 0.5) * scale;
        int out = key->flip ? key->size - 1 - i : i;
        float *weight = axis->weight + out;
        if (key->antialias) {
            Window window = axis_window(centre, support, taps, &box);
            double sum = 0;
            for (int j = window.from; j <= window.to; j++) {
                sum += filter((j + 0.5 - centre) * inverse, key->bicubic, a);
            }
            double share = 1 / sum;
            for (int j = window.from; j <= window.to; j++, weight += axis->stride) {
                *weight =
                    (float)(filter((j + 0.5 - centre) * inverse, key->bicubic, a) * share);
            }
            axis->first[out] = window.from - low;
        } else {
            int from = floor_int(centre - 0.5) - nearest / 2 + 1;
            int base = clamp_int(from, low, high);
            for (int j = from; j < from + nearest; j++) {
                int read = clamp_int(j, low, high) - base;
                weight[(size_t)read * axis->stride] +=
                    (float)filter(j + 0.5 - centre, key->bicubic, a);
            }
            axis->first[out] = base - low;
        }
    }
    return 0;
}

/* The transpose of `forward`: its inputs become outputs. */
static int axis_transpose(Axis *axis, const Axis *forward) {
    int pixels = forward->inputs;
    int32_t *low = malloc(sizeof(int32_t) * 2 * (size_t)pixels);
    if (!low) return -1;
    int32_t *high = low + pixels;
    for (int j = 0; j < pixels; j++) {
        low[j] = forward->outputs;
        high[j] = -1;
    }
    for (int i = 0; i < forward->outputs; i++) {
        for (int k = 0; k < forward->count[i]; k++) {
            int j = forward->first[i] + k;
            if (i < low[j]) low[j] = i;
            if (i > high[j]) high[j] = i;
        }
    }
    int taps = 1;
    for (int j = 0; j < pixels; j++) {
        if (high[j] < 0) low[j] = high[j] = j ? low[j - 1] : 0; /* never read: stay in order */
        if (high[j] - low[j] + 1 > taps) taps = high[j] - low[j] + 1;
    }
    int failed = axis_reserve(axis, forward->outputs, pixels, taps);
    if (!failed) {
        axis->offset = forward->offset;
        memcpy(axis->first, low, sizeof(int32_t) * (size_t)pixels);
        for (int k = 0; k < forward->taps; k++) {
            const float *weight = forward->weight + (size_t)k * forward->stride;
            for (int i = 0; i < forward->outputs; i++) {
                int j = forward->first[i] + k;
                if (k < forward->count[i]) {
                    axis->weight[(size_t)(i - low[j]) * axis->stride + j] = weight[i];
                }
            }
        }
    }
    free(low);
    return failed;
}

/* Make `axis` the table that `key` asks for; nothing to do where it already is. */
static int axis_set(Axis *axis, const AxisKey *key) {
    const AxisKey *old = &axis->key;
    if (axis->outputs && old->start == key->start && old->extent == key->extent &&
        old->length == key->length && old->size == key->size && old->bicubic == key->bicubic &&
        old->antialias == key->antialias && old->flip == key->flip &&
        old->transposed == key->transposed) {
        return 0;
    }
    axis->outputs = 0;
    if (key->transposed) {
        Axis forward = {0};
        int failed = axis_forward(&forward, key);
        if (!failed) {
            axis_finish(&forward);
            failed = axis_transpose(axis, &forward);
        }
        axis_free(&forward);
        if (failed) return -1;
    } else if (axis_forward(axis, key)) {
        return -1;
    }
    axis_finish(axis);
    axis->key = *key;
    return 0;
}

#endif
