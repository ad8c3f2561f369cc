// What is read of a sound file, and that each file that lies is refused with a reason.
#include "model/gguf/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <limits>

#include "tests/model/gguf/file_builder.h"

namespace retort::gguf {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint32_t kF32 = 0;
constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max();

FileBuilder Sound() {
  FileBuilder builder;
  builder.String("general.architecture", "llama").Uint32("llama.block_count", 3);
  builder.Tensor("a", {8, 2}, kF32, 0).Tensor("b", {32}, 8, 64).Data(98);
  return builder;
}

TEST(GgufFileTest, ReadsWhatStandsThere) {
  FileBuilder builder = Sound();
  builder.Key("f", ValueType::kFloat32, Raw(1.5F)).Key("d", ValueType::kFloat64, Raw(0.1));
  builder.Key("flag", ValueType::kBool, Raw<uint8_t>(1)).Key("n", ValueType::kInt16, Raw<int16_t>(-7));
  builder.Array("words", ValueType::kString, 2, RawString("one") + RawString(""));
  builder.Array("sizes", ValueType::kUint8, 3, "\1\2\3").Array("none", ValueType::kFloat32, 0, "");
  builder.Key("big", ValueType::kUint64, Raw(kHuge));
  const std::string bytes = builder.Build();
  const auto file = File::Parse(bytes, "x.gguf");
  ASSERT_TRUE(file.ok()) << file.status();
  const File& f = **file;
  EXPECT_EQ(f.version(), 3u);
  EXPECT_EQ(f.String("general.architecture").value(), "llama");
  EXPECT_EQ(f.Integer("llama.block_count").value(), 3);
  EXPECT_EQ(f.Number("llama.block_count").value(), 3.0);
  EXPECT_EQ(f.Number("f").value(), 1.5);
  EXPECT_EQ(f.Number("d").value(), 0.1);
  EXPECT_TRUE(f.Boolean("flag").value());
  EXPECT_EQ(f.Integer("n").value(), -7);
  EXPECT_THAT(f.Strings("words").value(), ElementsAre("one", ""));
  EXPECT_THAT(f.Integers("sizes").value(), ElementsAre(1, 2, 3));
  EXPECT_THAT(f.Numbers("none").value(), ElementsAre());
  EXPECT_EQ(f.Integer("absent").status().code(), absl::StatusCode::kNotFound);
  for (const auto& status : {f.Integer("big").status(), f.Integer("f").status(), f.Integer("sizes").status(),
                             f.String("n").status(), f.Strings("sizes").status(), f.Boolean("n").status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("x.gguf: metadata key \""));
  }
  ASSERT_EQ(f.tensors().size(), 2u);
  EXPECT_THAT(f.FindTensor("a")->shape, ElementsAre(2, 8));
  EXPECT_EQ(f.FindTensor("b")->type, TensorType::kQ8_0);
  EXPECT_EQ(f.Data(*f.FindTensor("b")).size(), 34u);
  EXPECT_EQ(f.Data(*f.FindTensor("b")).data() + 34, bytes.data() + bytes.size());
  EXPECT_EQ(f.FindTensor("c"), nullptr);
}

TEST(GgufFileTest, OddButSoundFilesAreRead) {
  EXPECT_TRUE(File::Parse(FileBuilder().Build(), "x").ok());
  EXPECT_TRUE(File::Parse(Sound().Version(2).Build(), "x").ok());
  FileBuilder aligned;
  aligned.Uint32("general.alignment", 1).Tensor("t", {3}, kF32, 5).Alignment(1).Data(17);
  const std::string bytes = aligned.Build();
  const auto file = File::Parse(bytes, "x");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->FindTensor("t")->offset, bytes.size() - 12);
}

TEST(GgufFileTest, EachLieIsRefused) {
  const auto with_tensor = [](std::vector<uint64_t> sizes, uint32_t type, uint64_t offset, uint64_t data) {
    return FileBuilder().Tensor("t", std::move(sizes), type, offset).Data(data).Build();
  };
  const std::string cut = Sound().Build();
  const auto array = [](ValueType type, uint64_t count, const std::string& elements) {
    return FileBuilder().Array("k", type, count, elements).Build();
  };
  const std::pair<const char*, std::string> cases[] = {
      {"empty", ""},
      {"three bytes", "GGU"},
      {"another format", "GGML" + cut.substr(4)},
      {"magic alone", "GGUF"},
      {"version 0", Sound().Version(0).Build()},
      {"version 1", Sound().Version(1).Build()},
      {"version 4", Sound().Version(4).Build()},
      {"big-endian", Sound().Version(0x03000000).Build()},
      {"more keys than bytes", Sound().ClaimKeys(1000).Build()},
      {"all the keys there are", Sound().ClaimKeys(kHuge).Build()},
      {"keys that wrap", Sound().ClaimKeys(kHuge / 13 + 1).Build()},
      {"one key too many", Sound().ClaimKeys(3).Build()},
      {"one key too few", Sound().ClaimKeys(1).Build()},
      {"more tensors than bytes", Sound().ClaimTensors(1000).Build()},
      {"all the tensors there are", Sound().ClaimTensors(kHuge).Build()},
      {"one tensor too many", Sound().ClaimTensors(3).Build()},
      {"a key of no bytes", FileBuilder().String("", "x").Build()},
      {"a key that is no UTF-8", FileBuilder().String("\xff\xfe", "x").Build()},
      {"a key of a megabyte", FileBuilder().String(std::string(1 << 20, 'k'), "x").Build()},
      {"a key longer than the file", "GGUF" + Raw<uint32_t>(3) + Raw<uint64_t>(0) + Raw<uint64_t>(1) + Raw(kHuge) + "k" +
                                         std::string(64, ' ')},
      {"a key twice", FileBuilder().Uint32("k", 1).Uint32("k", 1).Build()},
      {"a type that is none", FileBuilder().Key("k", static_cast<ValueType>(13), Raw<uint64_t>(0)).Build()},
      {"a type of all ones", FileBuilder().Key("k", static_cast<ValueType>(0xFFFFFFFF), Raw<uint64_t>(0)).Build()},
      {"a value cut off", FileBuilder().Key("k", ValueType::kUint64, "\1\2\3").Build()},
      {"a string longer than the file", FileBuilder().Key("k", ValueType::kString, Raw<uint64_t>(100) + "short").Build()},
      {"a string of all ones", FileBuilder().Key("k", ValueType::kString, Raw(kHuge) + "short").Build()},
      {"an array longer than the file", array(ValueType::kUint32, 1000, "1234")},
      {"an array that wraps", array(ValueType::kUint64, kHuge / 8 + 2, "12345678")},
      {"an array of all ones", array(ValueType::kUint8, kHuge, "12345678")},
      {"strings more than bytes", array(ValueType::kString, uint64_t{1} << 40, RawString("a"))},
      {"strings of all ones", array(ValueType::kString, kHuge, RawString("a"))},
      {"one string too many", array(ValueType::kString, 3, RawString("a") + RawString("b"))},
      {"a string in an array longer than the file", array(ValueType::kString, 1, Raw<uint64_t>(50) + "ab")},
      {"an array of arrays",
       array(ValueType::kArray, 1, RawType(ValueType::kArray) + Raw<uint64_t>(1) + RawType(ValueType::kUint8) + "1234567890")},
      {"an array of no type", array(static_cast<ValueType>(99), 1, "12345678")},
      {"many arrays in one another",
       [] {
         std::string nested;
         for (int i = 0; i < 100000; ++i) nested += RawType(ValueType::kArray) + Raw<uint64_t>(1);
         return FileBuilder().Key("k", ValueType::kArray, nested).Build();
       }()},
      {"alignment 0", Sound().Uint32("general.alignment", 0).Build()},
      {"alignment 3", Sound().Uint32("general.alignment", 3).Build()},
      {"alignment of gigabytes", Sound().Uint32("general.alignment", 1U << 31).Build()},
      {"alignment that is text", Sound().String("general.alignment", "32").Build()},
      {"a tensor without a name", FileBuilder().Tensor("", {8}, kF32, 0).Data(32).Build()},
      {"a tensor's name that is no UTF-8", FileBuilder().Tensor("\xc3", {8}, kF32, 0).Data(32).Build()},
      {"a tensor's name of a megabyte", FileBuilder().Tensor(std::string(1 << 20, 't'), {8}, kF32, 0).Data(32).Build()},
      {"a tensor twice", FileBuilder().Tensor("t", {8}, kF32, 0).Tensor("t", {8}, kF32, 32).Data(64).Build()},
      {"no dimensions", with_tensor({}, kF32, 0, 32)},
      {"five dimensions", with_tensor({1, 1, 1, 1, 8}, kF32, 0, 32)},
      {"a size of 0", with_tensor({8, 0}, kF32, 0, 32)},
      {"a size of all ones", with_tensor({kHuge}, kF32, 0, 32)},
      {"sizes that overflow", with_tensor({uint64_t{1} << 32, uint64_t{1} << 32}, kF32, 0, 32)},
      {"sizes that overflow to 8", with_tensor({(uint64_t{1} << 63) + 4, 2}, kF32, 0, 32)},
      {"bytes that overflow", with_tensor({uint64_t{1} << 62}, kF32, 0, 32)},
      {"a type of no tensor", with_tensor({8}, 4, 0, 32)},
      {"a type of all ones", with_tensor({8}, 0xFFFFFFFF, 0, 32)},
      {"rows that are no whole blocks", with_tensor({48, 2}, 8, 0, 102)},
      {"K-quant rows that are no whole blocks", with_tensor({128}, 12, 0, 144)},
      {"an offset off the alignment", with_tensor({8}, kF32, 4, 64)},
      {"an offset beyond the file", with_tensor({8}, kF32, 64, 32)},
      {"an offset of all ones", with_tensor({8}, kF32, kHuge, 32)},
      {"an offset that wraps", with_tensor({8}, kF32, kHuge - 31, 32)},
      {"data cut off", with_tensor({8}, kF32, 0, 31)},
      {"no data at all", with_tensor({8}, kF32, 0, 0)},
      {"overlap", FileBuilder().Tensor("a", {8}, kF32, 0).Tensor("b", {8}, kF32, 0).Data(32).Build()},
      {"partial overlap", FileBuilder().Tensor("a", {16}, kF32, 0).Tensor("b", {8}, kF32, 32).Data(64).Build()},
      {"one part of several", Sound().Key("split.count", ValueType::kUint16, Raw<uint16_t>(3)).Build()},
  };
  for (const auto& [name, contents] : cases) {
    const auto file = File::Parse(contents, "x.gguf");
    ASSERT_FALSE(file.ok()) << name;
    EXPECT_TRUE(file.status().code() == absl::StatusCode::kInvalidArgument ||
                file.status().code() == absl::StatusCode::kUnimplemented)
        << name << ": " << file.status();
    EXPECT_THAT(std::string(file.status().message()), HasSubstr("x.gguf: ")) << name;
    EXPECT_LT(file.status().message().size(), 1000u) << name;
  }
  for (size_t bytes = 0; bytes < cut.size(); ++bytes) {
    EXPECT_FALSE(File::Parse(absl::string_view(cut).substr(0, bytes), "x").ok()) << bytes;
  }
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  EXPECT_LT(usage.ru_maxrss, 1 << 18) << "KiB";
}

TEST(GgufFileTest, TextThatIsNoUtf8IsRefusedWhereItIsRead) {
  const std::string bytes =
      FileBuilder().String("s", "a\xff").Array("l", ValueType::kString, 1, RawString("\xc0\xaf")).Build();
  const auto file = File::Parse(bytes, "x");
  ASSERT_TRUE(file.ok());
  EXPECT_EQ((*file)->String("s").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*file)->Strings("l").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(GgufFileTest, OpensPathsAndSaysWhatIsWrongWithThem) {
  EXPECT_EQ(File::Open("/nowhere/x.gguf").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(File::Open("/tmp").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(IsGgufFile("/nowhere/X.GGUF"));
  EXPECT_FALSE(IsGgufFile("/tmp"));
}

}  // namespace
}  // namespace retort::gguf
