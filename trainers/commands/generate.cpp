// `trireme generate MODEL`: greedy text from a language model and an adapter.
#include "framework/models/generate.h"

#include "data/text/chat.h"
#include "framework/models/causal_lm_load.h"
#include "trainers/commands/language_model.h"

#include <iostream>

#include <ATen/ATen.h>

namespace trireme {
namespace {

struct GenerateOptions {
  LanguageModelOptions model;
  std::string prompt, chat;
  int most = 256;
};

int generate(const GenerateOptions& o) {
  const LanguageModel m = load_language_model(o.model);
  const auto tokenizer = load_tokenizer(o.model.model);
  GreedyOptions greedy_options;
  greedy_options.most = o.most;
  greedy_options.ends = m.model.config().end_ids;
  greedy_options.before_pass = [&](std::span<const std::int64_t> lengths) { m.begin(lengths); };
  std::vector<std::int64_t> prompt;
  if (o.chat.empty()) {
    prompt = tokenizer.encode(o.prompt, true);
  } else {
    const ChatTemplate format = chat_template(o.chat, tokenizer, o.model.model);
    for (const auto id :
         encode_prompt({Message{.role = "user", .content = o.prompt, .input = {}}}, format, tokenizer, "--prompt"))
      prompt.push_back(id);
    greedy_options.ends.push_back(end_of_answer(format, tokenizer));
  }
  if (const auto eos = tokenizer.eos()) greedy_options.ends.push_back(*eos);
  const auto ids = greedy(m.model, {prompt}, greedy_options)[0];
  std::cout << tokenizer.decode(ids, true) << std::endl;
  return 0;
}

const Commands::Entry registered({"generate", "greedy text from a language model, perhaps with an adapter",
                                  [](CommandOptions& command) {
                                    const auto o = std::make_shared<GenerateOptions>();
                                    language_model_options(command, o->model);
                                    command.text("--prompt", o->prompt, "text to go on from", command.required);
                                    command.text("--template", o->chat,
                                                 "the prompt is a user's message: auto, plain, alpaca, chatml, qwen2, "
                                                 "qwen2_5, qwen3, llama3 or llama3_1; default: it "
                                                 "is plain text");
                                    command.number("--max", o->most, "new tokens at most", {1, 1 << 20});
                                    return [o](const CommandLine&) { return generate(*o); };
                                  }});

}  // namespace
}  // namespace trireme
