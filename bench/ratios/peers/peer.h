/* What a peer library offers. Plain C, so that a peer may be compiled with flags and headers of its own (another Eigen,
   -march=native) that the program knows nothing of. Each peer is a shared library that exports lora_bench_peer alone.
 */
#ifndef LORA_BENCH_RATIOS_PEERS_PEER_H_
#define LORA_BENCH_RATIOS_PEERS_PEER_H_

#ifdef __cplusplus
extern "C" {
#endif

enum LoraBenchTaskKind {
  lora_bench_product,            /* out (n x d) = in (n x k) * w^T */
  lora_bench_product_transposed, /* out (n x k) = in (n x d) * w */
  lora_bench_lora_forward,       /* out (n x d) = in * w^T + bias + scaling * (in * a^T) * b^T, nothing remembered */
  lora_bench_lora_step,          /* the same, then with dy (n x d): gradients of in, a and b */
  lora_bench_quantized_product   /* out (n x d) = in (n x k) * w^T, with w in blocks; once for each copy of w */
};

/* All matrices are row-major and contiguous: w is d x k, a is r x k, b is d x r. They outlive the job. */
struct LoraBenchTask {
  enum LoraBenchTaskKind kind;
  long n, d, k, r;
  float scaling;
  const float *in, *w, *bias, *a, *b, *dy;
  float* out;
  /* Of a quantised product, else null and 0: the rows of w, as a GGUF file holds them, in `bytes` bytes in all, and the
     name of their format there ("Q8_0"). A job holds `copies` of them, each in memory of its own, and a run multiplies
     by each: weights that together exceed every cache are read from memory. */
  const char* format;
  const void* blocks;
  long bytes, copies;
};

struct LoraBenchPeer {
  /* Name and version of the library, as it reports them. */
  const char* (*version)(void);
  /* What it says about the kernels it uses; asked after a job has run. */
  const char* (*kernel)(void);
  /* How many ways there are to lay out the weight for this task; 0: the task is not supported. */
  int (*layouts)(const struct LoraBenchTask* task);
  const char* (*layout_name)(const struct LoraBenchTask* task, int layout);
  /* Lays out the weight and allocates what the job needs; null on failure. */
  void* (*prepare)(const struct LoraBenchTask* task, int layout);
  void (*run)(void* job);
  /* Copies the result of the last run to task->out, where the job has not written it there. Untimed. */
  void (*fetch)(void* job);
  void (*destroy)(void* job);
};

#define LORA_BENCH_EXPORT __attribute__((visibility("default")))

LORA_BENCH_EXPORT const struct LoraBenchPeer* lora_bench_peer(void);

#ifdef __cplusplus
}
#endif

#endif /* LORA_BENCH_RATIOS_PEERS_PEER_H_ */
