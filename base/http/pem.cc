#include "base/http/pem.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

namespace ringmaster {
namespace {

std::unique_ptr<BIO, int (*)(BIO*)> Memory(const std::string& text) {
  return {BIO_new_mem_buf(text.data(), static_cast<int>(text.size())), BIO_free};
}

}  // namespace

std::vector<std::shared_ptr<X509>> CertificatesIn(const std::string& pem) {
  std::vector<std::shared_ptr<X509>> certificates;
  const auto memory = Memory(pem);
  ERR_clear_error();
  while (X509* const next = PEM_read_bio_X509(memory.get(), nullptr, nullptr, nullptr)) {
    certificates.emplace_back(next, X509_free);
  }
  // Of a file that is being written, half would do for a client that knows the rest.
  if (ERR_GET_REASON(ERR_peek_last_error()) != PEM_R_NO_START_LINE) certificates.clear();
  ERR_clear_error();
  return certificates;
}

std::shared_ptr<EVP_PKEY> KeyIn(const std::string& pem) {
  // A password would be asked for at the terminal.
  char no_password[] = "";
  std::shared_ptr<EVP_PKEY> key(
      PEM_read_bio_PrivateKey(Memory(pem).get(), nullptr, nullptr, no_password), EVP_PKEY_free);
  ERR_clear_error();
  return key;
}

bool IsKeyOf(const std::string& certificate_pem, const std::string& key_pem) {
  const auto certificates = CertificatesIn(certificate_pem);
  const auto key = KeyIn(key_pem);
  const bool fits = !certificates.empty() && key != nullptr &&
                    X509_check_private_key(certificates.front().get(), key.get()) == 1;
  ERR_clear_error();
  return fits;
}

}  // namespace ringmaster
