// The passes of an embedding over any table: strides, workers, threads.
#include "lora/layers/embedding_passes.hpp"

#include <cstdint>
#include <gtest/gtest.h>
#include <thread>
#include <vector>

#include "support/bits.hpp"
#include "support/random_matrix.hpp"
#include "support/thread_executor.hpp"

namespace lora {
namespace {

using testing::random_matrix;
using testing::same_bits;

constexpr Index n = 90, v = 37, d = 53, r = 5;

// An adapted table whose rows lie apart, as a block of a wider matrix.
struct Parts {
  explicit Parts(bool use_dora)
      : wide(random_matrix<float>(v, d + 7, 1)),
        adapter("Parts", {.rank = r, .use_dora = use_dora}, 1,
                {random_matrix<float>(r, v, 2), random_matrix<float>(d, r, 3)}),
        dora(use_dora ? DoraMagnitude<float>(DenseWeight<float>(table().transpose()), adapter.update())
                      : DoraMagnitude<float>()) {
    for (Index i = 0; i < n; ++i) ids.push_back(static_cast<std::int32_t>((i * i) % v));
    if (use_dora) dora.value() *= 2;
  }
  [[nodiscard]] MatrixView<const float> table() const { return view_of(wide).middle_cols(3, d); }
  [[nodiscard]] IdView<std::int32_t> id_view() const {
    return {MatrixView<const std::int32_t>{ids.data(), n, 1, 1, 1}};
  }
  [[nodiscard]] EmbeddingPasses<float> passes() const { return {table(), adapter, dora, 1}; }

  Matrix<float> wide;
  LoraAdapter<float> adapter;
  DoraMagnitude<float> dora;
  std::vector<std::int32_t> ids;
};

struct Answer {
  Matrix<float> y = Matrix<float>(n, d), inferred = Matrix<float>(n, d), logits = Matrix<float>(n, v),
                projected = Matrix<float>(n, v), dx = Matrix<float>(n, d);
  LoraGradients<float> gradients;
};

Answer run(const Parts& parts, Executor& executor) {
  const auto passes = parts.passes();
  const auto dy = random_matrix<float>(n, d, 4), x = random_matrix<float>(n, d, 5);
  const auto dlogits = random_matrix<float>(n, v, 6);
  Workspace workspace(executor);
  Answer answer;
  answer.gradients.A = Matrix<float>::Zero(r, v);
  answer.gradients.B = Matrix<float>::Zero(d, r);
  answer.gradients.magnitude = RowVector<float>::Zero(parts.dora.value().size());
  LoraRecord<float> record;
  ProjectionRecord<float> projection;
  const MatrixView<float> dx = view_of(answer.dx);
  passes.infer(parts.id_view(), view_of(answer.inferred), workspace);
  passes.forward(parts.id_view(), record, view_of(answer.y), workspace);
  passes.project(view_of(x), view_of(answer.projected), workspace);
  passes.project_forward(view_of(x), projection, view_of(answer.logits), workspace);
  passes.project_backward(view_of(x), projection, view_of(dlogits), answer.gradients, &dx, workspace);
  passes.backward(parts.id_view(), record, view_of(dy), answer.gradients, workspace);
  return answer;
}

void expect_same(const Answer& one, const Answer& two) {
  EXPECT_TRUE(same_bits(one.y, two.y));
  EXPECT_TRUE(same_bits(one.inferred, two.inferred));
  EXPECT_TRUE(same_bits(one.logits, two.logits));
  EXPECT_TRUE(same_bits(one.projected, two.projected));
  EXPECT_TRUE(same_bits(one.dx, two.dx));
  EXPECT_TRUE(same_bits(one.gradients.A, two.gradients.A));
  EXPECT_TRUE(same_bits(one.gradients.B, two.gradients.B));
  EXPECT_TRUE(same_bits(one.gradients.magnitude, two.gradients.magnitude));
}

class EmbeddingPassesLaws : public ::testing::TestWithParam<bool> {};

TEST_P(EmbeddingPassesLaws, HaveTheSameBitsForAnyNumberOfWorkers) {
  const Parts parts(GetParam());
  SerialExecutor serial;
  const Answer one = run(parts, serial);
  EXPECT_GT(one.gradients.A.norm(), 0);
  for (const int workers : {2, 3, 7}) {
    testing::ThreadExecutor executor(workers);
    expect_same(run(parts, executor), one);
  }
}

TEST_P(EmbeddingPassesLaws, TrainingAnswersAsInferenceDoes) {
  const Parts parts(GetParam());
  SerialExecutor serial;
  const Answer answer = run(parts, serial);
  EXPECT_TRUE(same_bits(answer.y, answer.inferred));
  EXPECT_TRUE(same_bits(answer.logits, answer.projected));
}

TEST_P(EmbeddingPassesLaws, ManyThreadsUseOneObject) {
  const Parts parts(GetParam());
  SerialExecutor serial;
  const Answer one = run(parts, serial);
  std::vector<Answer> answers(4);
  std::vector<std::thread> threads;
  for (auto& answer : answers) threads.emplace_back([&] { answer = run(parts, serial); });
  for (auto& thread : threads) thread.join();
  for (const auto& answer : answers) expect_same(answer, one);
}

// Repeated ids sum in the order of the batch: element by element the plain loop, bit for bit.
TEST(EmbeddingPasses, TheGradientOfASumsInOrder) {
  const Parts parts(false);
  const auto dy = random_matrix<float>(n, d, 4);
  SerialExecutor serial;
  Workspace workspace(serial);
  Matrix<float> y(n, d), v_rows(n, r);
  LoraRecord<float> record;
  LoraGradients<float> gradients;
  gradients.A = Matrix<float>::Zero(r, v);
  gradients.B = Matrix<float>::Zero(d, r);
  parts.passes().forward(parts.id_view(), record, view_of(y), workspace);
  parts.passes().backward(parts.id_view(), record, view_of(dy), gradients, workspace);
  const Matrix<float> factor = parts.adapter.scaling() * parts.adapter.B().transpose();
  kernels::project_down<float>(view_of(dy), {}, view_of(factor), 1.0F, view_of(v_rows), serial);
  Matrix<float> expected = Matrix<float>::Zero(r, v);
  for (Index i = 0; i < n; ++i) {
    const Index id = parts.ids[static_cast<std::size_t>(i)];
    if (id == 1) continue;
    for (Index p = 0; p < r; ++p) expected(p, id) += v_rows(i, p);
  }
  EXPECT_TRUE(same_bits(gradients.A, expected));
}

TEST(EmbeddingPasses, LookingUpCopiesRows) {
  const Parts parts(false);
  Workspace workspace;
  Matrix<float> y(n, d);
  parts.passes().look_up(parts.id_view(), view_of(y), workspace);
  for (Index i = 0; i < n; ++i) {
    EXPECT_TRUE(same_bits(y.row(i), parts.wide.block(parts.ids[static_cast<std::size_t>(i)], 3, 1, d)));
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, EmbeddingPassesLaws, ::testing::Bool());

}  // namespace
}  // namespace lora
