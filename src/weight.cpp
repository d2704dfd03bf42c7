// See src/README.md.
#include "lora/weight/packed.hpp"

namespace lora {

template class PackedWeight<float>;
template class PackedWeight<double>;

}  // namespace lora
