#include "framework/models/clip_config.h"

#include <algorithm>
#include <array>

namespace trireme::nn {
namespace {

// OpenCLIP's models of these names (open_clip 3.3.0); each also as NAME-quickgelu. All read 77 tokens of its
// vocabulary.
struct Named {
  const char* name;
  std::int64_t embed_dim, image_size, patch_size, vision_layers, vision_width, text_width, text_layers;
  std::vector<std::int64_t> resnet_layers = {};
};

const std::vector<Named>& named() {
  static const std::vector<Named> all{
      {"ViT-S-32", 384, 224, 32, 12, 384, 384, 12},          {"ViT-S-16", 384, 224, 16, 12, 384, 384, 12},
      {"ViT-S-32-alt", 256, 224, 32, 12, 384, 256, 10},      {"ViT-S-16-alt", 256, 224, 16, 12, 384, 256, 10},
      {"ViT-M-32", 512, 224, 32, 12, 512, 512, 12},          {"ViT-B-32", 512, 224, 32, 12, 768, 512, 12},
      {"ViT-B-16", 512, 224, 16, 12, 768, 512, 12},          {"ViT-L-16", 768, 224, 16, 24, 1024, 768, 12},
      {"ViT-L-14", 768, 224, 14, 24, 1024, 768, 12},         {"ViT-L-14-336", 768, 336, 14, 24, 1024, 768, 12},
      {"RN50", 1024, 224, 32, 1, 64, 512, 12, {3, 4, 6, 3}}, {"RN101", 512, 224, 32, 1, 64, 512, 12, {3, 4, 23, 3}}};
  return all;
}

constexpr std::string_view quick = "-quickgelu";

// The words of the key: views into texts that live as long as the program.
const std::vector<std::string_view>& words() {
  static const std::vector<std::string> texts = [] {
    std::vector<std::string> t{"custom"};
    for (const auto& n : named()) t.insert(t.end(), {n.name, n.name + std::string(quick)});
    return t;
  }();
  static const std::vector<std::string_view> views(texts.begin(), texts.end());
  return views;
}

void set_shape(ClipConfig& c) {
  const bool quick_gelu = c.name.ends_with(quick);
  const std::string base = c.name.substr(0, c.name.size() - (quick_gelu ? quick.size() : 0));
  const auto n = std::find_if(named().begin(), named().end(), [&](const Named& m) { return m.name == base; });
  if (n == named().end()) return;
  c.embed_dim = n->embed_dim;
  c.image_size = n->image_size;
  c.patch_size = n->patch_size;
  c.vision_layers = n->vision_layers;
  c.vision_width = n->vision_width;
  c.resnet_layers = n->resnet_layers;
  c.vision_heads = (c.resnet() ? 32 : 1) * n->vision_width / 64;
  c.text_width = n->text_width;
  c.text_layers = n->text_layers;
  c.text_heads = n->text_width / 64;
  c.context = 77;
  c.vocab = 49408;
  c.vision_mlp_ratio = c.text_mlp_ratio = 4;
  c.quick_gelu = quick_gelu;
}

}  // namespace

void ClipConfig::fields(Fields& f) {
  const std::string before = name;
  f.choice("name", name, words(), "a model of OpenCLIP: the defaults of the keys below are its shape");
  if (name != before) set_shape(*this);  // once: who visits again finds what the keys below made of it
  f("embed_dim", embed_dim, "width of the shared space", {.min = 1, .max = 65536});
  f("image_size", image_size, "pixels a side", {.min = 8, .max = 4096});
  f("patch_size", patch_size, "pixels of a patch's side", {.min = 1, .max = 4096});
  f("vision_width", vision_width, "width of the image tower", {.min = 1, .max = 65536});
  f("vision_layers", vision_layers, "blocks of the image tower", {.min = 1, .max = 1000});
  f("vision_heads", vision_heads, "attention heads of the image tower", {.min = 1, .max = 1024});
  f("resnet_layers", resnet_layers, "[3, 4, 6, 3]: the image tower is CLIP's ResNet with these blocks, not a ViT");
  f("context", context, "longest text in tokens, marks included", {.min = 2, .max = 4096});
  f("vocab", vocab, "rows of the token table", {.min = 514, .max = 1000000});
  f("text_width", text_width, "width of the text tower", {.min = 1, .max = 65536});
  f("text_layers", text_layers, "blocks of the text tower", {.min = 1, .max = 1000});
  f("text_heads", text_heads, "attention heads of the text tower", {.min = 1, .max = 1024});
  f("vision_mlp_ratio", vision_mlp_ratio, "width of the ViT's MLPs over vision_width", {.min = 0.01, .max = 64});
  f("text_mlp_ratio", text_mlp_ratio, "width of the text tower's MLPs over text_width", {.min = 0.01, .max = 64});
  f("quick_gelu", quick_gelu, "x * sigmoid(1.702 x), as OpenAI's weights need, in place of gelu");
  f("patch_dropout", patch_dropout, "share of an image's patches left out in training", {.min = 0, .max = 0.99});
  f.resume_may_change(true);  // the same bits
  f("checkpointing", checkpointing, "transformer blocks are computed again in backward instead of kept");
  f.resume_may_change(false);
  f("sync_bn", sync_bn, "batch statistics over all ranks in place of each rank's own");
  f("lock_image", lock_image, "the image tower is not trained, nor its batch statistics (LiT)");
  f("lock_image_unlocked_groups", lock_image_unlocked_groups,
    "last groups trained nevertheless: projection, last block and norm, the blocks before, embeddings", {.min = 0});
  f("lock_text", lock_text, "the text tower is not trained");
  f("lock_text_unlocked_groups", lock_text_unlocked_groups, "as lock_image_unlocked_groups", {.min = 0});
  f.require(resnet() || image_size % patch_size == 0, "patch_size", "does not divide image_size",
            "choose a divisor of it");
  f.require(resnet() || vision_width % vision_heads == 0, "vision_heads", "does not divide vision_width",
            "choose a divisor of it");
  f.require(text_width % text_heads == 0, "text_heads", "does not divide text_width", "choose a divisor of it");
  const auto blocks = [](std::int64_t n) { return n < 1 || n > 1000; };
  f.require(
      !resnet() || (resnet_layers.size() == 4 && std::none_of(resnet_layers.begin(), resnet_layers.end(), blocks)),
      "resnet_layers", "is not four numbers of blocks", "write [3, 4, 6, 3], or [] for a ViT");
  f.require(!resnet() || image_size % 32 == 0, "image_size", "is no multiple of 32", "a ResNet halves it five times");
  f.require(!resnet() || vision_width * 32 % vision_heads == 0, "vision_heads", "does not divide 32 * vision_width",
            "choose a divisor of it");
  f.require(!resnet() || vision_width % 2 == 0, "vision_width", "is odd", "a ResNet's stem has half of it");
  f.require(!resnet() || patch_dropout == 0, "patch_dropout", "is for a ViT", "set it to 0");
  f.require(resnet() || !sync_bn, "sync_bn", "is for a ResNet: a ViT has no batch statistics", "set it to false");
  f.require(lock_image || lock_image_unlocked_groups == 0, "lock_image_unlocked_groups",
            "is nothing without lock_image", "set lock_image: true, or leave it out");
  f.require(lock_text || lock_text_unlocked_groups == 0, "lock_text_unlocked_groups", "is nothing without lock_text",
            "set lock_text: true, or leave it out");
  f.require(!resnet() || lock_image_unlocked_groups == 0, "lock_image_unlocked_groups",
            "a ResNet is locked whole, as in OpenCLIP", "set it to 0");
}

}  // namespace trireme::nn
