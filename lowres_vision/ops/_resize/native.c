/* The resize for CPUs: crop, flip, resize, normalise, mix and cast, each image written once.
 *
 * Input rows are converted to float as the output asks for them, and kept in a ring as long as
 * the vertical taps reach back to them; a ring fits the first cache. Enlarging filters columns
 * first, once per input row; shrinking filters rows first, so that the dearer horizontal pass
 * runs on the smaller image. The backward pass is the same walk over transposed tap tables: each
 * input pixel gathers from the gradient, so no two threads write the same place and the result
 * does not depend on their number.
 *
 * Plain C without Python's headers: one build serves every Python and every torch.
 */
#include "native_axis.h"
#include "native_rows.h"
#include "native_threads.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#define LRV_VERSION 3 /* of Job's layout; native.py asks for the same */
#define LEAST_SHARED 32768 /* elements worth waking threads for, as in torch */
#define SLACK 64      /* floats that may be read behind a row: four vectors of sixteen */

enum { OK, NO_MEMORY, BAD_PARTNER, BAD_BOX };

typedef struct {
    const void *data;
    int64_t channel, row, column; /* strides, in elements */
    int64_t height, width;
} Image;

typedef struct {
    Image image;         /* the first of a batch; when going backward, the gradient's */
    int64_t next_image;  /* stride, in elements */
    const Image *images; /* or one each, where their sizes differ */
    void *result;        /* (batch, channels, height, width), dense */
    int64_t batch, channels, height, width;
    const double *boxes;    /* (batch, 4) top, left, height, width, or NULL */
    const uint8_t *flip;    /* (batch,) or NULL */
    const double *gain;     /* (channels,) or NULL for 1 */
    const double *bias;     /* (channels,) or NULL for 0 */
    const int64_t *partner; /* (batch,) or NULL */
    const float *lam;       /* (batch,) */
    const int64_t *paste;   /* (batch, 4) top, left, height, width of the result, or NULL */
    Team team;              /* GOMP_parallel, or NULL for threads of our own */
    double slack;           /* share of an image that boxes may reach beyond it; < 0: unchecked */
    int32_t image_type, result_type;
    int32_t bicubic, antialias, backward, channels_last;
    int32_t stream; /* write past the caches */
    int32_t instructions, threads;
} Job;

typedef struct {
    Axis rows, columns;
    int columns_first;
} Grid;

/* One channel of one image, on its way to output rows. */
typedef struct {
    const char *data;
    float gain, bias;
    ptrdiff_t row, column;
    float *line; /* one row between the passes */
    float *ring; /* the last grid->rows.taps rows */
    int loaded;  /* the next input row to read */
    int slot;    /* where in the ring it goes */
} Plane;

/* What one thread works with: images and their partners, and rows of the result. */
typedef struct {
    Grid grids[2];
    Plane *planes[2];
    float *arenas[2];
    size_t arena_room[2];
    float *row, *other;
    char *packed; /* a row of each channel, in the result's type */
    const float **sources; /* rows to be summed, */
    float *weights;        /* their weights, */
    int listed, list_room; /* how many there are and may be */
} Worker;

typedef struct {
    const Job *job;
    int64_t next, total, chunk;
    int failed;
} Task;

static size_t line_floats(const Grid *grid) {
    return (size_t)whole_lanes(grid->columns.inputs + grid->columns.taps + SLACK);
}

static size_t ring_row_floats(const Grid *grid) {
    return (size_t)(grid->columns_first ? grid->columns.stride : whole_lanes(grid->columns.inputs));
}

static void axis_keys(AxisKey *rows, AxisKey *columns, const Job *job, int64_t index) {
    const Image *image = job->images ? &job->images[index] : &job->image;
    int height = (int)(job->backward ? job->height : image->height);
    int width = (int)(job->backward ? job->width : image->width);
    *rows = (AxisKey){.start = 0,
                      .extent = height,
                      .length = height,
                      .size = (int)(job->backward ? image->height : job->height),
                      .bicubic = job->bicubic,
                      .antialias = job->antialias,
                      .transposed = job->backward};
    *columns = *rows;
    columns->extent = columns->length = width;
    columns->size = (int)(job->backward ? image->width : job->width);
    columns->flip = job->flip && job->flip[index];
    if (job->boxes) {
        const double *box = job->boxes + 4 * index;
        rows->start = box[0];
        columns->start = box[1];
        rows->extent = box[2];
        columns->extent = box[3];
    }
}

static int grid_set(Grid *grid, const Job *job, int64_t index) {
    AxisKey rows, columns;
    axis_keys(&rows, &columns, job, index);
    if (axis_set(&grid->rows, &rows) || axis_set(&grid->columns, &columns)) return -1;
    grid->columns_first = grid->rows.inputs <= grid->rows.outputs;
    return 0;
}

/* Prepare channels [from, to) of an image; `side` is 0 for the image itself, 1 for a partner. */
static int planes_begin(Worker *worker, int side, const Job *job, int64_t index, int64_t from,
                        int64_t to) {
    Grid *grid = &worker->grids[side];
    if (grid_set(grid, job, index)) return -1;
    const Image *image = job->images ? &job->images[index] : &job->image;
    size_t line = line_floats(grid), ring = (size_t)grid->rows.taps * ring_row_floats(grid);
    size_t floats = (line + ring) * (size_t)(to - from);
    if (floats > worker->arena_room[side]) {
        lines_free(worker->arenas[side]);
        worker->arenas[side] = lines_alloc(sizeof(float) * floats);
        worker->arena_room[side] = worker->arenas[side] ? floats : 0;
        if (!worker->arenas[side]) return -1;
    }
    int64_t skipped = job->images ? 0 : index * job->next_image;
    if (!job->backward) {
        skipped += grid->rows.offset * image->row + grid->columns.offset * image->column;
    }
    for (int64_t c = from; c < to; c++) {
        int64_t element = skipped + c * image->channel;
        float *memory = worker->arenas[side] + (line + ring) * (size_t)(c - from);
        worker->planes[side][c - from] = (Plane){
            .data = (const char *)image->data + element * TYPE_BYTES[job->image_type],
            .gain = job->gain ? (float)job->gain[c] : 1,
            .bias = job->bias ? (float)job->bias[c] : 0,
            .row = (ptrdiff_t)image->row * TYPE_BYTES[job->image_type],
            .column = (ptrdiff_t)image->column,
            .line = memory,
            .ring = memory + line,
        };
        /* Weights of zero meet what lies behind a line's end, so it has to be finite. */
        memset(memory + grid->columns.inputs, 0,
               sizeof(float) * (line - (size_t)grid->columns.inputs));
    }
    return 0;
}

/* Room to list the rows of an image and its partner. */
static int list_reserve(Worker *worker) {
    int most = worker->grids[0].rows.taps + worker->grids[1].rows.taps;
    if (most <= worker->list_room) return 0;
    free(worker->sources);
    free(worker->weights);
    worker->sources = malloc(sizeof(float *) * (size_t)most);
    worker->weights = malloc(sizeof(float) * (size_t)most);
    worker->list_room = worker->sources && worker->weights ? most : 0;
    return worker->list_room ? 0 : -1;
}

/* Read on until the rows that output y is made of are in the ring. Put them and their weights,
 * times `share`, at the end of the worker's list. */
static void plane_reach(Plane *plane, const Grid *grid, Worker *worker, const RowKernels *kernels,
                        int type, int y, float share) {
    const Axis *rows = &grid->rows, *columns = &grid->columns;
    size_t ring_row = ring_row_floats(grid);
    int first = rows->first[y], count = rows->count[y];
    if (plane->loaded < first) plane->loaded = first;
    for (; plane->loaded < first + count; plane->loaded++) {
        const char *source = plane->data + plane->loaded * plane->row;
        float *slot = plane->ring + (size_t)plane->slot * ring_row;
        float *line = grid->columns_first ? plane->line : slot;
        kernels->load(line, source, type, plane->column, columns->inputs, plane->gain,
                      plane->bias);
        if (grid->columns_first) kernels->horizontal(slot, line, columns);
        if (++plane->slot == rows->taps) plane->slot = 0;
    }
    int slot = plane->slot - (plane->loaded - first);
    if (slot < 0) slot += rows->taps;
    for (int k = 0; k < count; k++) {
        worker->sources[worker->listed] = plane->ring + (size_t)slot * ring_row;
        worker->weights[worker->listed++] =
            share * rows->weight[(size_t)k * (size_t)rows->stride + (size_t)y];
        if (++slot == rows->taps) slot = 0;
    }
}

/* Sum the listed rows from column `begin` on, and empty the list. */
static void combine_listed(Worker *worker, const RowKernels *kernels, void *out, int begin,
                           int width, int type, int stream) {
    for (int k = 0; begin && k < worker->listed; k++) worker->sources[k] += begin;
    kernels->combine(out, worker->sources, worker->weights, worker->listed, width, type, stream);
    worker->listed = 0;
}

/* Columns [begin, end) of row y of a plane; all of them unless columns come first. */
static void plane_row(Plane *plane, const Grid *grid, Worker *worker, const RowKernels *kernels,
                      int type, int y, int begin, int end, float *out) {
    plane_reach(plane, grid, worker, kernels, type, y, 1);
    if (grid->columns_first) {
        combine_listed(worker, kernels, out, begin, end - begin, FLOAT32, 0);
    } else {
        combine_listed(worker, kernels, plane->line, 0, grid->columns.inputs, FLOAT32, 0);
        kernels->horizontal(out, plane->line, &grid->columns);
    }
}

/* The columns [*begin, *end) of row y that an image takes from its partner, if any. */
static int pasted(const int64_t *box, int width, int y, int *begin, int *end) {
    *begin = *end = 0;
    if (!box || y < box[0] || y >= box[0] + box[2]) return 0;
    int64_t right = box[1] + box[3];
    *begin = box[1] < 0 ? 0 : box[1] > width ? width : (int)box[1];
    *end = right < 0 ? 0 : right > width ? width : (int)right;
    return *begin < *end;
}

/* Write channels [from, to) of an image: one plane, or all of them as pixels. */
static int write_image(Worker *worker, const Job *job, int64_t index, int64_t from, int64_t to) {
    const RowKernels *kernels = rows_kernels(job->instructions);
    int blended = job->partner && !job->paste;
    if (planes_begin(worker, 0, job, index, from, to)) return -1;
    if (job->partner && planes_begin(worker, 1, job, job->partner[index], from, to)) return -1;
    if (list_reserve(worker)) return -1;
    const Grid *grid = &worker->grids[0], *other_grid = &worker->grids[1];
    const int64_t *box = job->paste ? job->paste + 4 * index : NULL;
    float lam = blended ? job->lam[index] : 1;
    int type = job->image_type, width = (int)job->width, bytes = TYPE_BYTES[job->result_type];
    size_t row_bytes = (size_t)width * (size_t)bytes, size = row_bytes * (size_t)(to - from);
    char *target = (char *)job->result +
                   (size_t)((index * job->channels + from) * job->height) * row_bytes;
    int stream = job->stream && size % 64 == 0 && (uintptr_t)target % 64 == 0;
    /* Rows of columns that are filtered already, and those of both images of a blend, can be
     * summed and cast at once, where they will stay. */
    int direct = !job->backward && grid->columns_first &&
                 (!blended || other_grid->columns_first);
    /* Going backward, the box is a part of the result and the rest of it is zero. */
    int top = job->backward ? grid->rows.offset : 0;
    int left = job->backward ? grid->columns.offset : 0;
    if (job->backward) memset(worker->row, 0, sizeof(float) * (size_t)width);

    for (int y = 0; y < job->height; y++, target += size) {
        int begin, end, paste = pasted(box, width, y, &begin, &end);
        for (int64_t c = 0; c < to - from; c++) {
            Plane *plane = &worker->planes[0][c], *other = &worker->planes[1][c];
            float *row = worker->row;
            void *home = job->channels_last ? worker->packed + row_bytes * (size_t)c : target;
            int past_caches = stream && !job->channels_last;
            if (direct && !paste) {
                plane_reach(plane, grid, worker, kernels, type, y, lam);
                if (blended) plane_reach(other, other_grid, worker, kernels, type, y, 1 - lam);
                combine_listed(worker, kernels, home, 0, width, job->result_type, past_caches);
                continue;
            }
            if (y < top || y >= top + grid->rows.outputs) {
                memset(row, 0, sizeof(float) * (size_t)width);
            } else {
                plane_row(plane, grid, worker, kernels, type, y - top, 0, grid->columns.outputs,
                          row + left);
            }
            if (blended) {
                plane_row(other, other_grid, worker, kernels, type, y, 0, width, worker->other);
                kernels->blend(row, worker->other, lam, width);
            }
            if (paste && other_grid->columns_first) {
                plane_row(other, other_grid, worker, kernels, type, y, begin, end, row + begin);
            } else if (paste) {
                plane_row(other, other_grid, worker, kernels, type, y, 0, width, worker->other);
                memcpy(row + begin, worker->other + begin, sizeof(float) * (size_t)(end - begin));
            }
            kernels->store(home, row, job->result_type, width, past_caches);
        }
        if (job->channels_last) {
            kernels->interleave(target, worker->packed, row_bytes, bytes, (int)(to - from), width,
                                stream);
        }
    }
    return 0;
}

typedef struct {
    ByteAxis rows, columns;
    uint8_t *between; /* the plane between the passes */
    size_t room;
} ByteWorker;

static int write_bytes(ByteWorker *worker, const Job *job, int64_t index, int64_t channel) {
    const RowKernels *kernels = rows_kernels(job->instructions);
    const ByteAxis *rows = &worker->rows, *columns = &worker->columns;
    const Image *image = &job->image;
    size_t width = (size_t)job->width, bytes = width * (size_t)rows->inputs;
    if (bytes > worker->room) {
        free(worker->between);
        worker->between = malloc(bytes);
        worker->room = worker->between ? bytes : 0;
        if (!worker->between) return -1;
    }
    const uint8_t *source = (const uint8_t *)image->data + index * job->next_image +
                            channel * image->channel + rows->offset * image->row +
                            columns->offset * image->column;
    for (int y = 0; y < rows->inputs; y++) {
        kernels->filter_bytes(worker->between + width * (size_t)y, source + y * image->row,
                              image->column, columns);
    }
    uint8_t *target =
        (uint8_t *)job->result + (size_t)((index * job->channels + channel) * job->height) * width;
    for (int y = 0; y < rows->outputs; y++, target += width) {
        kernels->sum_bytes(target, worker->between + width * (size_t)rows->first[y],
                           rows->weight + (size_t)y * (size_t)rows->taps, rows->count[y],
                           (int)width);
    }
    return 0;
}

static void work_on_bytes(void *context) {
    Task *task = context;
    const Job *job = task->job;
    ByteWorker worker = {0};
    int failed = 0;
    while (!failed) {
        int64_t unit = ATOMIC_ADD(&task->next, task->chunk);
        if (unit >= task->total) break;
        int64_t end = unit + task->chunk < task->total ? unit + task->chunk : task->total;
        AxisKey rows, columns;
        axis_keys(&rows, &columns, job, unit / job->channels); /* a chunk is of one image */
        failed = byte_axis_set(&worker.rows, &rows) || byte_axis_set(&worker.columns, &columns);
        for (; unit < end && !failed; unit++) {
            failed = write_bytes(&worker, job, unit / job->channels, unit % job->channels);
        }
    }
    free(worker.rows.first);
    free(worker.columns.first);
    free(worker.between);
    if (failed) ATOMIC_SET(&task->failed, 1);
}

static int worker_begin(Worker *worker, const Job *job) {
    size_t channels = job->channels_last ? (size_t)job->channels : 1;
    size_t floats = (size_t)job->width + LRV_LANES;
    for (int side = 0; side < 2; side++) {
        worker->planes[side] = malloc(sizeof(Plane) * channels);
        if (!worker->planes[side]) return -1;
    }
    worker->row = lines_alloc(sizeof(float) * floats);
    worker->other = lines_alloc(sizeof(float) * floats);
    worker->packed = lines_alloc(sizeof(float) * floats * channels);
    return worker->row && worker->other && worker->packed ? 0 : -1;
}

static void worker_end(Worker *worker) {
    for (int side = 0; side < 2; side++) {
        axis_free(&worker->grids[side].rows);
        axis_free(&worker->grids[side].columns);
        free(worker->planes[side]);
        lines_free(worker->arenas[side]);
    }
    lines_free(worker->row);
    lines_free(worker->other);
    lines_free(worker->packed);
    free(worker->sources);
    free(worker->weights);
}

static void work_on(void *context) {
    Task *task = context;
    const Job *job = task->job;
    Worker worker = {0};
    int failed = worker_begin(&worker, job);
    while (!failed) {
        int64_t unit = ATOMIC_ADD(&task->next, task->chunk);
        if (unit >= task->total) break;
        int64_t end = unit + task->chunk < task->total ? unit + task->chunk : task->total;
        for (; unit < end && !failed; unit++) {
            if (job->channels_last) {
                failed = write_image(&worker, job, unit, 0, job->channels);
            } else {
                int64_t channel = unit % job->channels;
                failed =
                    write_image(&worker, job, unit / job->channels, channel, channel + 1);
            }
        }
    }
    worker_end(&worker);
    if (job->stream) rows_end();
    if (failed) ATOMIC_SET(&task->failed, 1);
}

EXPORT int lrv_version(void) { return LRV_VERSION; }

/* 0: plain C, 1: AVX2, 2: AVX-512. */
EXPORT int lrv_instructions(void) { return rows_supported(); }

/* Whether a box lies in its image; NaN lies nowhere. */
static int box_fits(const Job *job, int64_t index) {
    const Image *image = job->images ? &job->images[index] : &job->image;
    const double *box = job->boxes + 4 * index;
    double height = (double)image->height, width = (double)image->width;
    return box[0] >= 0 && box[1] >= 0 && box[2] > 0 && box[3] > 0 &&
           box[0] + box[2] <= height + job->slack * height &&
           box[1] + box[3] <= width + job->slack * width;
}

EXPORT int lrv_resize(const Job *job) {
    for (int64_t i = 0; job->boxes && job->slack >= 0 && i < job->batch; i++) {
        if (!box_fits(job, i)) return BAD_BOX;
    }
    for (int64_t i = 0; job->partner && i < job->batch; i++) {
        if (job->partner[i] < 0 || job->partner[i] >= job->batch) return BAD_PARTNER;
    }
    Task task = {.job = job, .total = job->batch, .chunk = 1};
    if (!job->channels_last) {
        task.total *= job->channels;
        /* A thread that keeps an image's channels makes its tables once. */
        if (job->batch >= 4 * job->threads) task.chunk = job->channels;
    }
    /* All of torch's threads or none: a team of another size would have to be made anew. */
    int worth = task.total > 1 && task.total * job->height * job->width >= LEAST_SHARED;
    Work work = job->result_type == UINT8 ? work_on_bytes : work_on;
    threads_run(job->team, work, &task, worth ? job->threads : 1);
    return task.failed ? NO_MEMORY : OK;
}
