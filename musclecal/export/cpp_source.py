"""The C++ text of the exported header that does not depend on the tables. Not for: numbers (`cpp_header`)."""

__all__ = ["CORRECTION", "DRAWS", "OPENING", "SMEAR"]

OPENING = """
#ifndef MUSCLECAL_HEADER_OF_NAMESPACE
#define MUSCLECAL_HEADER_OF_NAMESPACE

#ifdef __FAST_MATH__
#error "muon_scale.h: -ffast-math removes the checks for nan"
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace NAMESPACE {"""

CORRECTION = """
// Why a muon is not corrected: the first that applies.
enum class Reason : int {
  valid = 0,
  not_finite = 1,     // pT, eta or charge
  pt_below = 2,
  pt_above = 3,       // or at the upper end
  eta_outside = 4,
  charge_not_unit = 5,
  charge_turned = 6,  // the corrected curvature is not positive
};

// Bin [edges[i], edges[i + 1]) of x, -1 outside and for nan.
inline int bin_of(const double* edges, int n_bins, double x) {
  if (!(x >= edges[0] && x < edges[n_bins])) return -1;
  return static_cast<int>(std::upper_bound(edges, edges + n_bins + 1, x) - edges) - 1;
}

inline Reason out_of_range(double pt, double eta, double charge) {
  if (!std::isfinite(pt) || !std::isfinite(eta) || !std::isfinite(charge)) return Reason::not_finite;
  if (pt < Tables::pt_low) return Reason::pt_below;
  if (pt >= Tables::pt_high) return Reason::pt_above;
  if (bin_of(Tables::eta_edges, Tables::n_eta, eta) < 0) return Reason::eta_outside;
  if (charge != 1.0 && charge != -1.0) return Reason::charge_not_unit;
  return Reason::valid;
}

// Corrected over measured curvature of a muon in range, with a variation shifted by nsigma standard deviations.
inline double curvature_ratio(double pt, double eta, double charge, int ivar, double nsigma) {
  const int i = bin_of(Tables::eta_edges, Tables::n_eta, eta);
  const double* p = Tables::nominal[i];
  const double* v = Tables::variations[ivar][i];
  return 1.0 + (p[0] + nsigma * v[0]) - (p[1] + nsigma * v[1]) / pt + charge * (p[2] + nsigma * v[2]) * pt;
}

inline double curvature_ratio(double pt, double eta, double charge) {
  const double* p = Tables::nominal[bin_of(Tables::eta_edges, Tables::n_eta, eta)];
  return 1.0 + p[0] - p[1] / pt + charge * p[2] * pt;
}

inline void refuse_unknown(int ivar) {
  if (ivar < 0 || ivar >= Tables::n_var)
    throw std::out_of_range("muon scale: there is no variation " + std::to_string(ivar));
}

// Whether a muon is corrected, and why not. pt and eta before the correction, GeV; charge +1 or -1.
inline Reason validity(double pt, double eta, double charge) {
  const Reason reason = out_of_range(pt, eta, charge);
  if (reason != Reason::valid) return reason;
  return curvature_ratio(pt, eta, charge) > 0.0 ? Reason::valid : Reason::charge_turned;
}

inline Reason validity(double pt, double eta, double charge, int ivar, double nsigma) {
  refuse_unknown(ivar);
  const Reason reason = out_of_range(pt, eta, charge);
  if (reason != Reason::valid) return reason;
  return curvature_ratio(pt, eta, charge, ivar, nsigma) > 0.0 ? Reason::valid : Reason::charge_turned;
}

// Factor on pT; exactly 1 where the muon is out of range. It is not positive where the charge is turned.
inline double factor(double pt, double eta, double charge) {
  return out_of_range(pt, eta, charge) == Reason::valid ? 1.0 / curvature_ratio(pt, eta, charge) : 1.0;
}

inline double factor(double pt, double eta, double charge, int ivar, double nsigma) {
  refuse_unknown(ivar);
  if (out_of_range(pt, eta, charge) != Reason::valid) return 1.0;
  return 1.0 / curvature_ratio(pt, eta, charge, ivar, nsigma);
}"""

DRAWS = """// XXH64 with seed 0 of five 64-bit words: one stripe of four, a word by itself, the avalanche.
struct Hash {
  static constexpr std::uint64_t p1 = 11400714785074694791ULL;
  static constexpr std::uint64_t p2 = 14029467366897019727ULL;
  static constexpr std::uint64_t p3 = 1609587929392839161ULL;
  static constexpr std::uint64_t p4 = 9650029242287828579ULL;

  static std::uint64_t turned(std::uint64_t word, int bits) { return (word << bits) | (word >> (64 - bits)); }

  static std::uint64_t lane(std::uint64_t start, std::uint64_t word) { return turned(start + word * p2, 31) * p1; }

  static std::uint64_t of(const std::uint64_t (&words)[5]) {
    const std::uint64_t lanes[4] = {lane(p1 + p2, words[0]), lane(p2, words[1]), lane(0, words[2]),
                                    lane(0 - p1, words[3])};
    std::uint64_t h = turned(lanes[0], 1) + turned(lanes[1], 7) + turned(lanes[2], 12) + turned(lanes[3], 18);
    for (const std::uint64_t l : lanes) h = (h ^ lane(0, l)) * p1 + p4;
    h += 40;  // bytes
    h = turned(h ^ lane(0, words[4]), 27) * p1 + p4;
    h = (h ^ (h >> 33)) * p2;
    h = (h ^ (h >> 29)) * p3;
    return h ^ (h >> 32);
  }
};

// PCG-XSH-RR 64/32.
struct Generator {
  static constexpr std::uint64_t multiplier = 6364136223846793005ULL;
  static constexpr std::uint64_t increment = 1442695040888963407ULL;
  std::uint64_t state;

  explicit Generator(std::uint64_t seed) : state((seed + increment) * multiplier + increment) {}

  // A 32-bit output, as a number from -1 to 1.
  double next() {
    const std::uint32_t word = static_cast<std::uint32_t>(((state >> 18) ^ state) >> 27);
    const unsigned turn = static_cast<unsigned>(state >> 59);
    state = state * multiplier + increment;
    const std::uint32_t out = (word >> turn) | (word << ((32U - turn) & 31U));
    return static_cast<double>(out) * (1.0 / 2147483648.0) - 1.0;
  }
};

// Unit Gaussian of a muon, by the polar method; phi must be finite.
inline double normal_draw(std::int64_t run, std::int64_t lumi, std::uint64_t event, double phi, std::int64_t salt = 0) {
  const double rounded = static_cast<double>(static_cast<float>(phi));
  std::uint64_t phi_bits = 0;
  std::memcpy(&phi_bits, &rounded, sizeof rounded);
  const std::uint64_t words[5] = {static_cast<std::uint64_t>(run), static_cast<std::uint64_t>(lumi), event, phi_bits,
                                  static_cast<std::uint64_t>(salt)};
  Generator generator(Hash::of(words));
  while (true) {
    const double u = generator.next();
    const double v = generator.next();
    const double square = u * u + v * v;
    if (square > 0.0 && square < 1.0) return u * std::sqrt(-2.0 * std::log(square) / square);
  }
}"""

SMEAR = """
// Factor on pT of a simulated muon; 1 out of the ranges of pT and eta, and for a phi that is not finite or beyond 1e6.
inline double smear(double pt, double eta, double phi, std::int64_t run, std::int64_t lumi, std::uint64_t event,
                    std::int64_t salt = 0) {
  const int i = bin_of(Resolution::eta_edges, Resolution::n_eta, eta);
  if (i < 0 || !(pt >= Tables::pt_low && pt < Tables::pt_high) || !(phi >= -1e6 && phi < 1e6)) return 1.0;
  const double* p = Resolution::parameters[i];
  const double square = pt * pt;
  const double variance = p[0] + p[2] * square + p[1] * square / (square + p[3]);
  return 1.0 / (1.0 + std::sqrt(std::max(0.0, variance)) * normal_draw(run, lumi, event, phi, salt));
}
"""
