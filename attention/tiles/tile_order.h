#pragma once

#include <vector>

#include "attention/kernels/tile_list.h"
#include "attention/plan/options.h"

namespace ringmaster::attention {

// Sorts tiles head by head in an order; the rows that they see stay where they are.
void SortTiles(TileOrder order, const std::vector<kernels::TileKeys>& keys,
               std::vector<kernels::Tile>* tiles);
void SortTiles(TileOrder order, const std::vector<kernels::TileKeys>& queries,
               std::vector<kernels::KeyTile>* tiles);

// Sorts the last tiles, a few for each multiprocessor, the heaviest first, so that all end at about
// the same time. The others stay: neighbours read the same rows.
void SortLastTiles(const std::vector<kernels::TileKeys>& keys, std::vector<kernels::Tile>* tiles);
void SortLastTiles(const std::vector<kernels::TileKeys>& queries,
                   std::vector<kernels::KeyTile>* tiles);

}  // namespace ringmaster::attention
