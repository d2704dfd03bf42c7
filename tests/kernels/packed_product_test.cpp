#include "lora/kernels/packed_product.hpp"

#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "support/kernel_oracle.hpp"
#include "support/thread_executor.hpp"

namespace lora {
namespace {

using kernels::PanelCall;
using kernels::PanelLayout;
using testing::ExactArray;
using testing::Oracle;
using testing::Storage;
using testing::supported_isas;

template <class Scalar>
std::vector<Scalar> pack(Isa isa, const MatrixView<const Scalar>& weight) {
  const PanelLayout<Scalar> layout{weight.rows, weight.cols};
  std::vector<Scalar> panels(static_cast<std::size_t>(layout.size()));
  for (Index b = 0; b < layout.panels(); ++b) kernels::pack_panel(isa, weight, b, panels.data() + layout.offset(b));
  return panels;
}

template <class Scalar>
class PackedProductTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(PackedProductTest, Scalars);

TYPED_TEST(PackedProductTest, BothProductsMatchTheOracleAcrossRowPasses) {
  for (const Isa isa : supported_isas()) {
    for (const Index rows : {Index{3}, kernels::rows_per_pass + 1, kernels::rows_per_packing_pass + 9}) {
      const ExactArray<TypeParam> weight(70, 30, Storage::row_major, 1);
      const std::vector<TypeParam> panels = pack(isa, weight.input());
      const PanelLayout<TypeParam> layout{70, 30};
      const auto multiply = kernels::multiply_kernel<TypeParam>(isa);
      testing::ThreadExecutor executor(3);
      Workspace workspace(executor);

      const ExactArray<TypeParam> x(rows, 30, Storage::row_major, 2);
      const ExactArray<TypeParam> y(rows, 70, Storage::row_major, 3);
      kernels::packed_product<TypeParam>({layout, x.input(), nullptr, {}, {}, y.view(), multiply}, panels.data(),
                                         workspace);
      Oracle forward(rows, 70);
      forward.add_product(1, x.input(), weight.input().transpose());
      forward.expect_near(y.view(), std::string(isa_name(isa)) + " product of rows " + std::to_string(rows));

      const ExactArray<TypeParam> dx(rows, 30, Storage::row_major, 4);
      kernels::packed_product_transposed<TypeParam>({{30, 70}, y.input(), nullptr, {}, {}, dx.view(), multiply}, layout,
                                                    panels.data(), isa, workspace);
      Oracle backward(rows, 30);
      backward.add_product(1, y.input(), weight.input());
      backward.expect_near(dx.view(), std::string(isa_name(isa)) + " transposed, rows " + std::to_string(rows));
    }
  }
}

TYPED_TEST(PackedProductTest, ASingleRowHasTheBitsOfTheSameRowInABatch) {
  constexpr Index width = kernels::panel_width<TypeParam>;
  for (const Isa isa : supported_isas()) {
    for (const Index outputs : {Index{1}, width, width + 5, 2 * width, 3 * width, 5 * width + 7}) {
      for (const Index inputs : {Index{0}, Index{1}, Index{37}, kernels::inner_block<TypeParam> + 11}) {
        for (const Index rank : {0, 1, 9}) {
          for (const bool biased : {false, true}) {
            const ExactArray<TypeParam> weight(outputs, inputs, Storage::row_major, 1);
            const ExactArray<TypeParam> x(2, inputs, Storage::strided, 2);
            const ExactArray<TypeParam> u(2, rank, Storage::column_major, 3);
            const ExactArray<TypeParam> up(rank, outputs, Storage::row_major, 4);
            const ExactArray<TypeParam> bias(1, outputs, Storage::row_major, 5);
            const ExactArray<TypeParam> batch(2, outputs, Storage::row_major, 6);
            const std::vector<TypeParam> panels = pack(isa, weight.input());
            PanelCall<TypeParam> call{
                {outputs, inputs}, x.input(),    biased ? bias.input().data : nullptr,    u.input(),
                up.input(),        batch.view(), kernels::multiply_kernel<TypeParam>(isa)};
            Workspace workspace;
            kernels::packed_product(call, panels.data(), workspace);
            Oracle oracle(2, outputs);
            if (biased) oracle.add_row(bias.input().data);
            oracle.add_product(1, x.input(), weight.input().transpose());
            oracle.add_product(1, u.input(), up.input());
            const std::string what = std::string(isa_name(isa)) + ", outputs " + std::to_string(outputs) + ", inputs " +
                                     std::to_string(inputs) + ", rank " + std::to_string(rank);
            oracle.expect_near(batch.view(), what);
            for (const int workers : {1, 2, 3}) {
              testing::ThreadExecutor executor(workers);
              Workspace parallel(executor);
              const ExactArray<TypeParam> single(1, outputs, Storage::row_major, 7);
              call.x = x.input().middle_rows(1, 1);
              call.down = u.input().middle_rows(1, 1);
              call.y = single.view();
              kernels::packed_product(call, panels.data(), parallel);
              ASSERT_EQ(single.view().map(), batch.view().map().row(1)) << what << ", workers " << workers;
            }
          }
        }
      }
    }
  }
}

TYPED_TEST(PackedProductTest, AFactorMayLieTransposed) {
  for (const Isa isa : supported_isas()) {
    for (const Index rows : {1, 2, 11}) {
      for (const Index outputs : {1, 15, 48, 70, 150}) {
        for (const Index rank : {1, 3, 8, 17}) {
          const ExactArray<TypeParam> weight(outputs, 9, Storage::row_major, 1);
          const ExactArray<TypeParam> x(rows, 9, Storage::row_major, 2);
          const ExactArray<TypeParam> u(rows, rank, Storage::row_major, 3);
          const ExactArray<TypeParam> b(outputs, rank, Storage::row_major, 4);
          const Matrix<TypeParam> up = b.input().map().transpose();
          const ExactArray<TypeParam> expected(rows, outputs, Storage::row_major, 5);
          const ExactArray<TypeParam> got(rows, outputs, Storage::row_major, 6);
          const std::vector<TypeParam> panels = pack(isa, weight.input());
          Workspace workspace;
          PanelCall<TypeParam> call{{outputs, 9},
                                    x.input(),
                                    nullptr,
                                    u.input(),
                                    view_of(up),
                                    expected.view(),
                                    kernels::multiply_kernel<TypeParam>(isa)};
          kernels::packed_product(call, panels.data(), workspace);
          call.up = b.input().transpose();
          call.y = got.view();
          kernels::packed_product(call, panels.data(), workspace);
          ASSERT_EQ(got.view().map(), expected.view().map())
              << isa_name(isa) << " N " << rows << " d " << outputs << " r " << rank;
        }
      }
    }
  }
}

TYPED_TEST(PackedProductTest, ATransposedPanelHoldsTheRowsOfTheWeight) {
  const ExactArray<TypeParam> weight(101, 53, Storage::row_major, 1);
  const PanelLayout<TypeParam> layout{101, 53};
  const PanelLayout<TypeParam> transposed{53, 101};
  for (const Isa isa : supported_isas()) {
    const std::vector<TypeParam> panels = pack(isa, weight.input());
    for (Index b = 0; b < transposed.panels(); ++b) {
      std::vector<TypeParam> scratch(static_cast<std::size_t>(transposed.width(b) * 101));
      const kernels::TransposedPanel<TypeParam> panel{
          layout, panels.data(), transposed.first_output(b), transposed.columns(b), transposed.width(b),
          isa,    scratch.data()};
      const TypeParam* rows = panel.rows(0, 101);
      for (Index j = 0; j < 101; ++j) {
        for (Index q = 0; q < transposed.columns(b); ++q) {
          ASSERT_EQ(rows[j * transposed.width(b) + q], weight.input()(j, transposed.first_output(b) + q));
        }
      }
    }
  }
}

}  // namespace
}  // namespace lora
