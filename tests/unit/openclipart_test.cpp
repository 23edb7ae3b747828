#include "data/image_text/openclipart.h"

#include "comm/error.h"
#include "data/image_text/captions.h"
#include "data/image_text/svg_metadata.h"
#include "data/rng.h"
#include "tests/needs.h"
#include "tests/unit/reference_files.h"

#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

namespace {

using namespace trireme;
namespace fs = std::filesystem;
using Strings = std::vector<std::string>;

constexpr std::string_view svg = R"(<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x "y">]>
<svg xmlns:dc="http://purl.org/dc/elements/1.1/"><title>not this</title><!-- <metadata> -->
<metadata><rdf:RDF><cc:Work rdf:about="a>b"><dc:title> Caf&#233; &amp; Bar </dc:title>
<dc:subject><rdf:Bag><rdf:li>food</rdf:li><rdf:li/><rdf:li></rdf:li><rdf:li><![CDATA[<cup>]]></rdf:li></rdf:Bag></dc:subject>
<dc:publisher><cc:Agent><dc:title>Open Clip Art Library</dc:title></cc:Agent></dc:publisher>
<dc:creator><cc:Agent><dc:title>Anna Example</dc:title></cc:Agent></dc:creator>
</cc:Work></rdf:RDF></metadata><path d="M 0 0"/><metadata><dc:title>later</dc:title></metadata></svg>)";

TEST(SvgMetadata, TakesTheWorksOwnTitle) {
  const SvgMetadata m = read_svg_metadata(svg);
  EXPECT_EQ(m.title, "Café & Bar");
  EXPECT_EQ(m.keywords, (Strings{"food", "<cup>"}));
  EXPECT_EQ(m.agents, (Strings{"Open Clip Art Library", "Anna Example"}));
}

TEST(SvgMetadata, AgentBeforeTitle) {
  const auto m = read_svg_metadata(
      "<metadata><Work><creator><Agent><title>A "
      "B</title></Agent></creator><title>crow</title></Work></metadata>");
  EXPECT_EQ(m.title, "crow");
  EXPECT_EQ(m.agents, (Strings{"A B"}));
}

TEST(SvgMetadata, HostileInput) {
  for (std::size_t n = 0; n <= svg.size(); ++n) read_svg_metadata(svg.substr(0, n));
  Rng rng(3, "svg");
  for (int round = 0; round < 2000; ++round) {
    std::string s(svg);
    for (int k = 0; k < 8; ++k) s[rng.below(s.size())] = "<>/&;'\"!-[]=? \0\xff"[rng.below(17)];
    read_svg_metadata(s);
  }
  std::string deep = "<metadata>";
  for (int i = 0; i < 100000; ++i) deep += "<a>";
  EXPECT_EQ(read_svg_metadata(deep).title, "");
  const auto m = read_svg_metadata("<metadata><title>" + std::string(1 << 20, 'x') + "</title></metadata>");
  EXPECT_LE(m.title.size(), 1024u);
  std::string many = "<metadata><subject>";
  for (int i = 0; i < 10000; ++i) many += "<li>k</li>";
  EXPECT_LE(read_svg_metadata(many).keywords.size(), 128u);
  EXPECT_EQ(read_svg_metadata("<metadata><title>a&lol9;b</title></metadata>").title,
            "a&lol9;b");  // no entity is expanded
}

TEST(Captions, Words) {
  EXPECT_EQ(caption_words("Baseball_Cap (B and W)"), (Strings{"baseball", "cap", "b", "and", "w"}));
  EXPECT_EQ(caption_words("redHotPepper"), (Strings{"red", "hot", "pepper"}));
  EXPECT_EQ(caption_words("Valentine's caf\xc3\xa9"), (Strings{"valentines", "cafe"}));
  EXPECT_EQ(caption_words("Route 66 by jo@example.org http://a.b/c hash(0x8a07724)"), (Strings{"route", "66", "by"}));
  EXPECT_TRUE(caption_words(" -_- \xff\xfe").empty());
}

CaptionSource source(std::string title, Strings keywords, Strings agents, std::string stem, Strings folders) {
  return {std::move(title), std::move(keywords), std::move(agents), std::move(stem), std::move(folders)};
}

TEST(Captions, SaysWhatIsSeen) {
  std::vector<CaptionSource> all;
  for (int i = 0; i < 5; ++i) all.push_back(source("", {"animal", "bird", "silhouette"}, {}, "x", {}));
  for (int i = 0; i < 2; ++i) all.push_back(source("", {"animal", "bird"}, {}, "x", {}));
  for (int i = 0; i < 2; ++i) all.push_back(source("", {"animals"}, {}, "x", {}));
  for (int i = 0; i < 20; ++i)
    all.push_back(
        source("My Star Collection", {"stars"}, {"Jo Doe"}, "star_" + std::to_string(i) + "pt3step", {"shapes"}));
  const CaptionMaker make(all);
  // Keywords: the broadest, then from the rarest on; those that repeat the title or were seen once or twice
  // are left out.
  EXPECT_EQ(
      make(source("Crow", {"silhouette", "Crows", "unheard", "bird", "animal"}, {}, "crow_01", {"animals", "birds"})),
      "crow, animal, silhouette, bird");
  // Authors: in the title, in keywords, at the end of the file name.
  EXPECT_EQ(make(source("Owl by Anna Example", {}, {"Anna Example"}, "owl", {})), "owl");
  EXPECT_EQ(make(source("Anna Example", {}, {"Anna Example"}, "crazy_monkey_anna_exa_01", {})), "crazy monkey");
  EXPECT_EQ(make(source("Clipart by Anna Example - cup", {}, {"Anna Example"}, "table03", {})), "table");
  // Titles that say nothing give way to the file name.
  EXPECT_EQ(make(source("unsorted", {}, {}, "green_bottle2", {"unsorted"})), "green bottle");
  EXPECT_EQ(make(source("My Star Collection", {}, {"Jo Doe"}, "star_92pt15step", {"special"})), "star, my star");
  EXPECT_EQ(make(source("hash(0x85caca8)", {"HASH(0x1)"}, {}, "tree", {})), "tree");
  EXPECT_EQ(make(source("", {}, {}, "gnome-fs-home", {})), "home");
  // Numbers of a series go, meaning stays.
  EXPECT_EQ(make(source("guitar1", {}, {}, "x", {})), "guitar");
  EXPECT_EQ(make(source("Route 66", {}, {}, "x", {})), "route 66");
  EXPECT_EQ(make(source("Muffin (B and W)", {}, {}, "x", {})), "muffin black and white");
  EXPECT_EQ(make(source("", {}, {}, "simple_h_k", {"recreation", "cards"})), "king of hearts");
  // The style of an icon theme.
  EXPECT_EQ(make(source("Part of the Flat Icon Collection", {}, {"D A"}, "view_tree", {"flat-theme"})),
            "view tree, flat theme");
  EXPECT_EQ(make(source("", {}, {}, "", {})), "");
}

TEST(Openclipart, ReadsAFolderPair) {
  TRIREME_NEEDS("PNG");
  const fs::path root = fs::temp_directory_path() / ("trireme_openclipart_" + std::to_string(getpid()));
  fs::remove_all(root);
  EXPECT_THROW(openclipart(root.string()), DataError);
  auto add = [&](const std::string& name, int shade, const std::string& title) {
    for (const char* kind : {"png", "svg"}) fs::create_directories((root / kind / name).parent_path());
    const auto png = trireme::test::write_png({0, 8}, 4, 4, std::vector<int>(16, shade));
    std::ofstream((root / "png" / name).string() + ".png", std::ios::binary)
        .write(reinterpret_cast<const char*>(png.data()), std::streamsize(png.size()));
    if (!title.empty())
      std::ofstream((root / "svg" / name).string() + ".svg") << "<metadata><title>" << title << "</title></metadata>";
  };
  add("unsorted/crow_01", 10, "Crow");
  add("animals/birds/crow_01", 10, "Crow");
  add("animals/owl_02", 30, "");
  PrepareSpec spec = openclipart(root.string());
  spec.out = (root / "o_8.h5").string();
  spec.size = 8;
  const PrepareReport r = prepare_images(spec);
  EXPECT_EQ(r.images, 2);
  EXPECT_EQ(r.duplicates, 1);
  const ImageTextData data(spec.out);
  EXPECT_EQ(data.classes(), (Strings{"animals", "animals/birds"}));  // the sorted copy stays
  EXPECT_EQ(data.caption(0), "crow");
  EXPECT_EQ(data.caption(1), "owl");
  fs::remove_all(root);
}

}  // namespace
