// Shapes are signed distances in units of their radius; a pixel's share of a shape is half a pixel minus its distance.
#include "data/scenes/scene.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace trireme {
namespace {

constexpr float pi = std::numbers::pi_v<float>;

struct Color {
  float r, g, b;
};

Color color_of(int color) {
  const Rgb c = scene_color(color);
  return {float(c.r), float(c.g), float(c.b)};
}
Color mix(Color a, Color b, float t) { return {a.r + (b.r - a.r) * t, a.g + (b.g - a.g) * t, a.b + (b.b - a.b) * t}; }

// A regular polygon of n corners, one of them up.
float polygon(float x, float y, int n) {
  const float sector = 2 * pi / float(n);
  float angle = std::atan2(x, -y);
  angle -= sector * std::floor(angle / sector) + sector / 2;
  return std::hypot(x, y) * std::cos(angle) - std::cos(sector / 2);
}

float box(float x, float y, float a, float b) { return std::max(std::abs(x) - a, std::abs(y) - b); }

// Five points; each side is mirrored into one half of a point.
float star(float x, float y) {
  constexpr float inner = 0.45f, half = pi / 5;
  float angle = std::abs(std::remainder(std::atan2(x, -y), 2 * half));
  const float r = std::hypot(x, y), px = r * std::sin(angle), py = r * std::cos(angle);
  // From the tip (0, 1) to the dent at half an angle.
  const float ex = inner * std::sin(half), ey = inner * std::cos(half) - 1;
  return ((py - 1) * -ex + px * ey) * -1 / std::hypot(ex, ey);
}

float heart(float x, float y) {
  const float px = std::abs(x), py = y - 0.05f;
  const float square = (std::abs(x) + std::abs(py)) / std::sqrt(2.f) - 0.6f;
  return std::min(square, std::hypot(px - 0.42f, py + 0.42f) - 0.6f);
}

// < 0 inside; x to the right, y down, all within the unit circle.
float distance(int shape, float x, float y) {
  switch (shape) {
    case 0:
      return std::hypot(x, y) - 0.95f;
    case 1:
      return box(x, y, 0.78f, 0.78f);
    case 2:
      return polygon(x, y - 0.12f, 3);
    case 3:
      return (std::abs(x) + std::abs(y) - 1) / std::sqrt(2.f);
    case 4:
      return polygon(x, y, 5);
    case 5:
      return polygon(x, y, 6);
    case 6:
      return star(x, y);
    case 7:
      return std::min(box(x, y, 0.95f, 0.32f), box(x, y, 0.32f, 0.95f));
    case 8:
      return heart(x, y);
    default:
      return (std::hypot(x, y / 0.6f) - 1) * 0.75f;
  }
}

// 0 where the object's own color shows, 1 where the texture's does; the middle is always 0. `soft`: a pixel, in units.
float texture(const SceneObject& o, float x, float y, float d, float soft) {
  const float period = 0.42f, close = std::max(std::abs(x), std::abs(y));
  const auto edge = [soft](float t) { return std::clamp(0.5f - t / soft, 0.f, 1.f); };
  float other = 0;
  if (o.texture == 1) {
    const float wave = std::abs(std::remainder(x * 0.8f + y * 0.6f + o.phase * period, period));
    other = edge(period / 4 - wave);
  } else if (o.texture == 2) {
    const float u = std::remainder(x + o.phase * period, period), v = std::remainder(y + o.phase * period, period);
    other = edge(std::hypot(u, v) - period * 0.27f);
  } else if (o.texture == 3) {
    const float u = std::remainder(x + o.phase * period, period), v = std::remainder(y, period);
    const float cut = std::max(edge(-u), 0.f), low = std::max(edge(-v), 0.f);
    other = cut * (1 - low) + low * (1 - cut);
  } else if (o.texture == 4) {
    return edge(-d - 0.16f);
  }
  return other * std::clamp((close - 0.12f) / soft + 0.5f, 0.f, 1.f);
}

struct Geometry {
  double x, y, radius;
};

Geometry geometry_of(const SceneObject& o, int width, int height) {
  static constexpr double radii[] = {0.24, 0.33, 0.43};  // of the shorter side of a cell
  const double cell_w = width / 3.0, cell_h = height / 3.0;
  return {(o.cell % 3 + 0.5 + double(o.dx)) * cell_w, (o.cell / 3 + 0.5 + double(o.dy)) * cell_h,
          radii[o.size] * std::min(cell_w, cell_h)};
}

void draw_object(const SceneObject& o, int width, int height, std::vector<Color>& canvas) {
  const Geometry g = geometry_of(o, width, height);
  const Color own = color_of(o.color);
  const float brightness = 0.3f * own.r + 0.59f * own.g + 0.11f * own.b;
  const Color other = o.texture == 4 ? (brightness < 60 ? Color{230, 230, 230} : Color{15, 15, 15})
                                     : mix(own, brightness < 120 ? Color{255, 255, 255} : Color{0, 0, 0}, 0.6f);
  const float scale = float(1 / g.radius), c = std::cos(o.turn), s = std::sin(o.turn);
  const int x0 = std::max(0, int(g.x - g.radius * 1.15 - 1)), x1 = std::min(width, int(g.x + g.radius * 1.15 + 2));
  const int y0 = std::max(0, int(g.y - g.radius * 1.15 - 1)), y1 = std::min(height, int(g.y + g.radius * 1.15 + 2));
  for (int y = y0; y < y1; ++y)
    for (int x = x0; x < x1; ++x) {
      const float px = (float(x) + 0.5f - float(g.x)) * scale, py = (float(y) + 0.5f - float(g.y)) * scale;
      const float u = c * px + s * py, v = c * py - s * px;
      const float d = distance(o.shape, u, v), share = std::clamp(0.5f - d / scale, 0.f, 1.f);
      if (share <= 0) continue;
      Color& out = canvas[std::size_t(y) * std::size_t(width) + std::size_t(x)];
      out = mix(out, mix(own, other, texture(o, u, v, d, scale)), share);
    }
}

std::uint8_t level(float v) { return std::uint8_t(std::clamp(v + 0.5f, 0.f, 255.f)); }

}  // namespace

ScenePoint center_of(const SceneObject& object, int width, int height) {
  const Geometry g = geometry_of(object, width, height);
  return {g.x, g.y};
}

Image render(const Scene& scene, int width, int height, double grain) {
  std::vector<Color> canvas(std::size_t(width) * std::size_t(height));
  const Color ground = color_of(scene.ground);
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x) {
      const float across = (float(x) + 0.5f) / float(width) - 0.5f, down = (float(y) + 0.5f) / float(height) - 0.5f;
      const float light = 1 + 0.16f * (scene.light[0] * across + scene.light[1] * down);
      canvas[std::size_t(y) * std::size_t(width) + std::size_t(x)] = {ground.r * light, ground.g * light,
                                                                      ground.b * light};
    }
  for (const auto& o : scene.objects) draw_object(o, width, height, canvas);
  Image out{width, height, std::vector<std::uint8_t>(canvas.size() * 3)};
  std::uint8_t* p = out.rgb.data();
  std::uint32_t state = scene.grain;
  // The sum of four bytes has a standard deviation of 147.8.
  const float strength = float(grain / 147.8);
  for (const Color& c : canvas) {
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    const float noise =
        strength * (float((state & 255) + (state >> 8 & 255) + (state >> 16 & 255) + (state >> 24)) - 510.f);
    *p++ = level(c.r + noise), *p++ = level(c.g + noise), *p++ = level(c.b + noise);
  }
  return out;
}

}  // namespace trireme
