// A certificate authority for tests.
#pragma once

#include <memory>
#include <string>

namespace retort {

// Writes PEM files: <folder>/<name>.crt and <folder>/<name>.key. `signer` empty: self-signed, a CA. Otherwise signed by
// <folder>/<signer>.*, for the address 127.0.0.1 and the name localhost.
void WriteCertificate(const std::string& folder, const std::string& name, const std::string& signer);

}  // namespace retort
