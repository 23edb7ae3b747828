// Title, keywords and agents of an SVG file's RDF metadata, read by a small tolerant scanner: no DTD, no
// external entities, bounded depth and text. Broken markup gives whatever was found before it, never an
// error.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

struct SvgMetadata {
  std::string title;                  // dc:title of the work itself; UTF-8, character references resolved
  std::vector<std::string> keywords;  // rdf:li of dc:subject, file order
  std::vector<std::string> agents;    // creators, publishers, rights holders
};

SvgMetadata read_svg_metadata(std::string_view bytes);

}  // namespace trireme
