#include "coordinator/page/loss_plot.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/page/words.h"

namespace ringmaster::coordinator {
namespace {

constexpr size_t kPoints = 300;
constexpr double kWidth = 800;
constexpr double kHeight = 260;
constexpr double kLeft = 48;
constexpr double kRight = 12;
constexpr double kTop = 10;
constexpr double kBottom = 24;

// Who may write to the job's directory chooses the numbers: others could not be computed with.
bool IsSensible(int64_t step, double loss) {
  return step >= 0 && step <= int64_t{1} << 40 && std::abs(loss) < 1e30;
}

// From values to places in the drawing.
struct Axis {
  double low;
  double high;
  double begin;
  double end;
  double At(double value) const { return begin + (value - low) / (high - low) * (end - begin); }
};

// 1, 2 or 5 times a power of ten, so that about `count` of them are in `range`.
double TickDistance(double range, int count) {
  const double raw = range / count;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (raw <= factor * power) return factor * power;
  }
  return 10 * power;
}

std::string Place(double value) { return absl::StrFormat("%.1f", value); }

Html Text(double x, double y, const char* anchor, const std::string& text) {
  return Html::Element("text", {{"x", Place(x)}, {"y", Place(y)}, {"text-anchor", anchor}}, text);
}

Html Line(double x1, double y1, double x2, double y2) {
  return Html::Element("line",
                       {{"class", "grid"},
                        {"x1", Place(x1)},
                        {"y1", Place(y1)},
                        {"x2", Place(x2)},
                        {"y2", Place(y2)}},
                       "");
}

Html Grid(const Axis& x, const Axis& y) {
  Html grid;
  const double loss = TickDistance(y.high - y.low, 8);
  for (double at = std::ceil(y.low / loss) * loss; at <= y.high; at += loss) {
    grid += Line(x.begin, y.At(at), x.end, y.At(at));
    grid += Text(x.begin - 6, y.At(at) + 4, "end", absl::StrFormat("%.4g", at));
  }
  const double step = std::max(1.0, TickDistance(x.high - x.low, 8));
  for (double at = std::ceil(x.low / step) * step; at <= x.high; at += step) {
    grid += Line(x.At(at), y.begin, x.At(at), y.begin + 4);
    grid += Text(x.At(at), y.begin + 17, "middle", Count(static_cast<int64_t>(at)));
  }
  return grid;
}

std::vector<LossPoint> Validations(const std::vector<v1::StepRecord>& records) {
  std::vector<LossPoint> points;
  for (const v1::StepRecord& record : records) {
    const double loss = record.validation_loss();
    if (!record.has_validation_loss() || !IsSensible(record.step(), loss)) continue;
    points.push_back({static_cast<double>(record.step()), loss, loss, loss});
  }
  // Evenly many of too many.
  const size_t distance = (points.size() + kPoints - 1) / kPoints;
  for (size_t i = 0; distance > 1 && i * distance < points.size(); ++i) {
    points[i] = points[i * distance];
  }
  if (distance > 1) points.resize((points.size() + distance - 1) / distance);
  return points;
}

// A range that is not empty, with a little room.
Axis LossAxis(const std::vector<LossPoint>& points, const std::vector<LossPoint>& validations) {
  double low = points.front().low;
  double high = points.front().high;
  for (const auto* all : {&points, &validations}) {
    for (const LossPoint& point : *all) {
      low = std::min(low, point.low);
      high = std::max(high, point.high);
    }
  }
  const double room = std::max((high - low) * 0.05, std::max(std::abs(high), 1e-6) * 1e-3);
  return {low - room, high + room, kHeight - kBottom, kTop};
}

Html Curve(const std::vector<LossPoint>& points, const Axis& x, const Axis& y) {
  std::string line;
  std::string spread;
  for (const LossPoint& point : points) {
    absl::StrAppend(&line, Place(x.At(point.step)), ",", Place(y.At(point.mean)), " ");
    absl::StrAppend(&spread, Place(x.At(point.step)), ",", Place(y.At(point.high)), " ");
  }
  for (auto point = points.rbegin(); point != points.rend(); ++point) {
    absl::StrAppend(&spread, Place(x.At(point->step)), ",", Place(y.At(point->low)), " ");
  }
  return Html::Element("polygon", {{"class", "spread"}, {"points", spread}}, "") +
         Html::Element("polyline", {{"class", "loss"}, {"points", line}}, "");
}

}  // namespace

std::vector<LossPoint> LossPoints(const std::vector<v1::StepRecord>& records, size_t count) {
  std::vector<const v1::StepRecord*> sensible;
  for (const v1::StepRecord& record : records) {
    if (IsSensible(record.step(), record.loss())) sensible.push_back(&record);
  }
  std::vector<LossPoint> points;
  const size_t groups = std::min(count, sensible.size());
  for (size_t group = 0; group < groups; ++group) {
    const size_t begin = group * sensible.size() / groups;
    const size_t end = (group + 1) * sensible.size() / groups;
    LossPoint point = {.low = sensible[begin]->loss(), .high = sensible[begin]->loss()};
    for (size_t i = begin; i < end; ++i) {
      const double loss = sensible[i]->loss();
      point.mean += loss / static_cast<double>(end - begin);
      point.low = std::min(point.low, loss);
      point.high = std::max(point.high, loss);
    }
    point.step = static_cast<double>(sensible[begin]->step() + sensible[end - 1]->step()) / 2;
    points.push_back(point);
  }
  return points;
}

Html LossPlot(const std::vector<v1::StepRecord>& records) {
  const std::vector<LossPoint> points = LossPoints(records, kPoints);
  if (points.size() < 2) {
    return Html::Element("p", {{"class", "dim"}}, "no steps to draw yet");
  }
  const std::vector<LossPoint> validations = Validations(records);
  const Axis x = {points.front().step, points.back().step, kLeft, kWidth - kRight};
  const Axis y = LossAxis(points, validations);
  Html drawing = Grid(x, y) + Curve(points, x, y);
  for (const LossPoint& point : validations) {
    drawing += Html::Element("circle",
                             {{"class", "validation"},
                              {"cx", Place(x.At(std::clamp(point.step, x.low, x.high)))},
                              {"cy", Place(y.At(point.mean))},
                              {"r", "2.5"}},
                             "");
  }
  return Html::Element("svg",
                       {{"viewBox", absl::StrCat("0 0 ", kWidth, " ", kHeight)},
                        {"role", "img"},
                        {"aria-label", "loss over steps"}},
                       drawing);
}

}  // namespace ringmaster::coordinator
