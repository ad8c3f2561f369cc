#include "tests/common/rpc/test_certificates.h"

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstdio>

#include "common/check.h"

namespace retort {
namespace {

void AddExtension(X509* certificate, int nid, const char* value) {
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, nid, value);
  RETORT_CHECK(extension != nullptr);
  RETORT_CHECK(X509_add_ext(certificate, extension, -1) == 1);
  X509_EXTENSION_free(extension);
}

}  // namespace

void WriteCertificate(const std::string& folder, const std::string& name, const std::string& signer) {
  static int64_t serial = 0;
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* certificate = X509_new();
  X509_set_version(certificate, 2);
  ASN1_INTEGER_set_int64(X509_get_serialNumber(certificate), ++serial);
  X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
  X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
  X509_set_pubkey(certificate, key);
  X509_NAME* subject = X509_get_subject_name(certificate);
  X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1,
                             0);
  EVP_PKEY* signer_key = key;
  if (signer.empty()) {
    X509_set_issuer_name(certificate, subject);
    AddExtension(certificate, NID_basic_constraints, "critical,CA:TRUE");
  } else {
    FILE* file = fopen((folder + "/" + signer + ".crt").c_str(), "r");
    RETORT_CHECK(file != nullptr);
    X509* issuer = PEM_read_X509(file, nullptr, nullptr, nullptr);
    fclose(file);
    X509_set_issuer_name(certificate, X509_get_subject_name(issuer));
    X509_free(issuer);
    file = fopen((folder + "/" + signer + ".key").c_str(), "r");
    RETORT_CHECK(file != nullptr);
    signer_key = PEM_read_PrivateKey(file, nullptr, nullptr, nullptr);
    fclose(file);
    AddExtension(certificate, NID_subject_alt_name, "IP:127.0.0.1,DNS:localhost");
  }
  RETORT_CHECK(X509_sign(certificate, signer_key, EVP_sha256()) > 0);
  FILE* file = fopen((folder + "/" + name + ".crt").c_str(), "w");
  PEM_write_X509(file, certificate);
  fclose(file);
  file = fopen((folder + "/" + name + ".key").c_str(), "w");
  PEM_write_PrivateKey(file, key, nullptr, nullptr, 0, nullptr, nullptr);
  fclose(file);
  if (signer_key != key) EVP_PKEY_free(signer_key);
  EVP_PKEY_free(key);
  X509_free(certificate);
}

}  // namespace retort
