// Adapters of PEFT on a causal language model: into the slots of a store, out of them, and into the weights.
#pragma once
#include "framework/formats/peft.h"
#include "framework/models/causal_lm.h"

#include <memory>
#include <span>
#include <string>

namespace trireme {

// A store for all modules that any of these adapters has, with room for the largest rank; `model` runs through it from
// now on (CausalLm::attach). place: of the targets, to begin an error. UsageError as peft_targets().
std::unique_ptr<nn::AdapterStore> make_adapter_store(CausalLm& model, std::span<const PeftConfig> configs,
                                                     std::int64_t slots, nn::LoraBackend backend,
                                                     const std::string& place = "target_modules");

// UsageError(place): what the store adapts has a width that is no multiple of 16.
void check_fp8_widths(const nn::AdapterStore& store, const std::string& place);
// What the store adapts is FP8 codes from now on (AdapterStore::set_fp8_base). `layers` reads the layers of `model`,
// which need hold nothing yet, one tensor at a time, so that only codes and what is not adapted are ever there. What it
// throws is thrown.
void hold_fp8_base(CausalLm& model, nn::AdapterStore& store, const CausalLm::Source& layers);

// Ranks and scales of one adapter by the store's targets. UsageError(place): see peft_targets(); a module that the
// store was not made for.
nn::AdapterInit adapter_init(const CausalLm& model, const nn::AdapterStore& store, const PeftConfig& config,
                             std::uint64_t seed, const std::string& place);

// A free slot gets the weights of a folder, to go on from. DataError(place): modules or shapes that are not those the
// adapter's own config asks for on this model.
void load_adapter(const CausalLm& model, nn::AdapterStore& store, std::int64_t slot, const PeftAdapter& adapter,
                  const std::string& place);

// What write_peft() writes of a slot: copies on the host.
PeftAdapter adapter_of(const nn::AdapterStore& store, std::int64_t slot, const PeftConfig& config);

// The model with W + scale * B A in place of W; other weights are shared. The sum is f32 (f64), then of W's type.
CausalLm merged(const CausalLm& model, const PeftAdapter& adapter, const std::string& place);

}  // namespace trireme
