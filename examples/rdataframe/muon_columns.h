// Columns of muons for RDataFrame, from the header that musclecal exports.
//
//   #define MUON_SCALE muon_scale_2016H   // the namespace in muon_scale.h
//   #include "muon_scale.h"
//   #include "muon_columns.h"
//
// The functions take the muons of one event, as NanoAOD keeps them, and give a container of the same type as pt.
#pragma once

#include <cstddef>
#include <cstdint>

namespace muon_columns {

template <typename Reals, typename Charges>
Reals scaled_pt(const Reals& pt, const Reals& eta, const Charges& charge) {
  Reals out(pt);
  for (std::size_t i = 0; i < pt.size(); ++i) out[i] *= MUON_SCALE::factor(pt[i], eta[i], charge[i]);
  return out;
}

// With variation ivar shifted by nsigma standard deviations.
template <typename Reals, typename Charges>
Reals shifted_pt(const Reals& pt, const Reals& eta, const Charges& charge, int ivar, double nsigma) {
  Reals out(pt);
  for (std::size_t i = 0; i < pt.size(); ++i) out[i] *= MUON_SCALE::factor(pt[i], eta[i], charge[i], ivar, nsigma);
  return out;
}

// Simulation only, after the scale where simulation has one of its own.
template <typename Reals>
Reals smeared_pt(const Reals& pt, const Reals& eta, const Reals& phi, std::int64_t run, std::int64_t lumi,
                 std::uint64_t event) {
  Reals out(pt);
  for (std::size_t i = 0; i < pt.size(); ++i) out[i] *= MUON_SCALE::smear(pt[i], eta[i], phi[i], run, lumi, event);
  return out;
}

}  // namespace muon_columns
