// `trireme logits MODEL`: what a language model, with or without an adapter, gives for tokens.
#include "comm/error.h"
#include "framework/command.h"
#include "framework/formats/safetensors.h"
#include "trainers/commands/language_model.h"

#include <iostream>

#include <ATen/ATen.h>

namespace trireme {
namespace {

struct LogitsOptions {
  LanguageModelOptions model;
  std::string ids, out;
};

at::Tensor ids_of(const std::string& path, const CausalLm& model) {
  const at::Tensor ids = Safetensors(path).tensor("ids");
  if (ids.dim() != 2 || ids.scalar_type() != at::kLong || ids.numel() == 0)
    throw DataError(path, "`ids` is no [b, t] of i64", "write token ids, a sample a row");
  const auto beyond = at::logical_or(ids.lt(0), ids.ge(model.config().vocab));
  if (beyond.any().item<bool>())
    throw DataError(path,
                    "`ids` holds " + std::to_string(ids.masked_select(beyond)[0].item<std::int64_t>()) +
                        ", the model's vocabulary has " + std::to_string(model.config().vocab),
                    "write ids of this model's tokenizer");
  return ids;
}

int logits(const LogitsOptions& o) {
  const at::NoGradGuard no_grad;
  const LanguageModel m = load_language_model(o.model);
  const at::Tensor ids = ids_of(o.ids, m.model);
  const std::int64_t t = ids.size(1);
  at::Tensor all = at::empty({ids.size(0), t, m.model.config().vocab}, at::kFloat);
  for (std::int64_t i = 0; i < ids.size(0); ++i) {
    m.begin(std::vector<std::int64_t>{t});
    const TokenBatch batch{ids[i].to(m.model.device()), {t}};
    all[i].copy_(m.model.logits(m.model.hidden(batch)));
  }
  write_safetensors(o.out, std::vector<NamedTensor>{{"logits", all}});
  std::cout << "logits: " << o.out << " " << all.sizes() << std::endl;
  return 0;
}

const Commands::Entry registered(
    {"logits", "logits of a language model, perhaps with an adapter", [](CommandOptions& command) {
       const auto o = std::make_shared<LogitsOptions>();
       language_model_options(command, o->model);
       command.text("--ids", o->ids, "safetensors file with `ids` [b, t] i64", command.required);
       command.text("--out", o->out, "safetensors file to write: logits [b, t, vocab] f32", command.required);
       return [o](const CommandLine&) { return logits(*o); };
     }});

}  // namespace
}  // namespace trireme
