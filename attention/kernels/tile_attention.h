#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <vector>

#include "attention/kernels/element.h"
#include "attention/kernels/tile_list.h"

// Attention over lists of tiles, on raw pointers and a stream: bf16 and fp16, sums in fp32, head
// dimensions 64 and 128, Hopper. Calls are asynchronous; errors are the texts of CUDA.
// Thread-compatible. No torch.
namespace ringmaster::attention::kernels {

// Where results go. A query's place is its token's head. lse is the natural logarithm of the
// denominator, -inf for a query without keys.
struct Results {
  // By place: [batch, tokens, heads, head_dim] and [batch, tokens, heads]. Places of no query
  // are not written.
  void* out = nullptr;
  float* lse = nullptr;
  // What the rounding of `out` leaves over (rest.h), laid out as it; null: nobody wants it.
  int8_t* rest = nullptr;
  // The query with number i (Tile::first_row) has the whole result of its place where slots[i] is
  // kWhole, else part slots[i]. Null: all have the whole.
  const uint32_t* slots = nullptr;
  // [batch, parts, head_dim] and [batch, parts].
  float* part_outs = nullptr;
  float* part_lses = nullptr;
  int64_t parts = 0;
  // If given, parts merge_begin[i] .. merge_begin[i + 1] are there before, zeros where they saw no
  // key, and are merged into the result of place i. A result that is a part has none. Null: nothing
  // is merged.
  const uint32_t* merge_begin = nullptr;
};

struct ForwardProblem {
  ElementType type = ElementType::kBf16;  // of operands and out
  int head_dim = 0;                       // 64 or 128
  float scale = 1;                        // >= kLeastScale
  std::vector<View> query_views;
  // Pairs: rows of keys under view i have their values under the same view of `value_views`.
  std::vector<View> key_views;
  std::vector<View> value_views;
  // On the device.
  const Tile* tiles = nullptr;
  int tile_count = 0;
  const TileKeys* keys = nullptr;
  // Room for one number, which no other call uses until this one has run.
  unsigned* taken = nullptr;
  Results results;
};

// fp32 sums that rows are added to, of `tokens` tokens from `first_token` on, laid out as an
// operand is; pointer and strides are multiples of 16 bytes. Rows beyond a tile's may have zero
// added.
struct Gradient {
  float* data = nullptr;
  int64_t first_token = 0;
  int64_t tokens = 0;
  int64_t batch_stride = 0;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
};

// The gradient of one softmax of which these keys may be only some: lse is of all keys, and
// delta = sum over the head's dimension of dout * out with the output of all keys. The products are
// those of FlashAttention-2, section 3.1.2 (arXiv 2307.08691). The gradients of scores are rounded
// to the type before they meet queries and keys: in fp16 they end at 65504 and 6e-8, as in every
// kernel of that type, and it is the loss that is scaled.
struct BackwardProblem {
  ElementType type = ElementType::kBf16;  // of operands and finished gradients
  int head_dim = 0;
  float scale = 1;
  // Pairs, as keys and values are.
  std::vector<View> query_views;
  std::vector<View> dout_views;
  std::vector<View> key_views;
  std::vector<View> value_views;
  // [batch, tokens, PairsOfHeads(heads), 2, 2]: for each query what the sums of its scores and of
  // their gradients begin with, -lse / scale and -delta. -inf in place of the first takes a query
  // out. A multiple of 16 bytes.
  const float* starts = nullptr;
  // Whether the same lists give the same bits: two kernels and seven products instead of one and
  // five, and no sum is shared between blocks. Else dq depends in its last bits on who comes first.
  bool deterministic = true;
  KeyGradients key_gradients = KeyGradients::kAdd;
  // On the device. Queries, for dq, with the keys they see; read only if deterministic:
  const Tile* tiles = nullptr;
  int tile_count = 0;
  const TileKeys* keys = nullptr;
  // Keys, for dk and dv, with the queries that see them:
  const KeyTile* key_tiles = nullptr;
  int key_tile_count = 0;
  const TileKeys* queries = nullptr;
  // Room for one number, which no other call uses until this one has run.
  unsigned* taken = nullptr;
  // By view: where the rows of each view's operand have their gradients. No row of queries lies in
  // two tiles of one call, and none of keys if deterministic or not kAdd.
  std::vector<Gradient> dq;
  std::vector<Gradient> dk;
  std::vector<Gradient> dv;
  // For kFinish. By place of a key, a token's head, bits of kSumsBefore and kSumsAfter, null for
  // none, and where its gradients go: [batch, tokens, heads of keys, head_dim].
  const uint8_t* key_sums = nullptr;
  void* finished_dk = nullptr;
  void* finished_dv = nullptr;
};

// Empty, or why the current device, or this problem there, is not for these kernels.
std::string WhyNotDevice();
std::string WhyNot(const ForwardProblem& problem);
std::string WhyNot(const BackwardProblem& problem);

// Starts the forward pass on `stream`; the lists and tensors stay until it has run. Tiles start in
// the order of the list: heavy ones first. Empty, or what CUDA said. REQUIRES: WhyNot() is empty.
std::string TileForward(const ForwardProblem& problem, cudaStream_t stream);

// Starts the backward pass. REQUIRES: WhyNot() is empty.
std::string TileBackward(const BackwardProblem& problem, cudaStream_t stream);

}  // namespace ringmaster::attention::kernels
