#include "common/rpc/manifest_hash.h"

#include "absl/strings/str_cat.h"
#include "common/hash.h"

namespace retort {

std::string ManifestHash(const v1::Manifest& manifest) {
  Sha256 hash;
  hash.UpdateField("retort manifest 1");
  hash.UpdateU64(static_cast<uint64_t>(manifest.train_count()));
  hash.UpdateU64(static_cast<uint64_t>(manifest.validation_count()));
  for (const v1::BlobRef* file : {&manifest.train(), &manifest.validation()}) {
    hash.UpdateField(file->sha256());
    hash.UpdateU64(static_cast<uint64_t>(file->size_bytes()));
  }
  hash.UpdateU64(static_cast<uint64_t>(manifest.keys_size()));
  for (const v1::TraceKey& key : manifest.keys()) {
    const auto index = static_cast<uint32_t>(key.sample_index());
    const char big_endian[] = {static_cast<char>(index >> 24), static_cast<char>(index >> 16),
                               static_cast<char>(index >> 8), static_cast<char>(index)};
    hash.UpdateField(absl::StrCat(key.model_revision(), key.sampling_hash(), key.prompt_hash(),
                                  absl::string_view(big_endian, sizeof(big_endian))));
  }
  return ToHex(hash.Finish());
}

}  // namespace retort
