// SPDX-License-Identifier: MIT
// The groups of cases. Each measures what the session wants of it and adds goals.
#pragma once

#include "session.hpp"

namespace lora::bench {

void measure_base(Session& session);         ///< base_peak, base_peer, base_small, dx_peer
void measure_adapter(Session& session);      ///< lora_forward, lora_step
void measure_dropout(Session& session);      ///< dropout
void measure_dora(Session& session);         ///< dora_step
void measure_merged(Session& session);       ///< merged
void measure_torch(Session& session);        ///< torch_forward, torch_step
void measure_full_update(Session& session);  ///< full_step
void measure_merging(Session& session);      ///< merge, unmerge
void measure_decoding(Session& session);     ///< decode, decode_lora
void measure_quantized(
    Session& session);  ///< quantized_row, quantized_product, quantized_dx, quantized_step, quantized_bytes
void measure_quantized_peer(Session& session);  ///< quantized_row_ggml, int8_ggml, bf16_product
void measure_threads(Session& session);         ///< threads
void measure_counts(Session& session);          ///< allocations, saved, resident: exact, not timed

void sweep_batch_sizes(Session& session);  ///< for the plots alone
void sweep_ranks(Session& session);

}  // namespace lora::bench
