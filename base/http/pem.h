#pragma once

#include <memory>
#include <string>
#include <vector>

struct evp_pkey_st;
struct x509_st;

// Certificates and keys in PEM. What cannot be read is none; nothing is left in OpenSSL's queue of
// errors.
namespace ringmaster {

// The first one is the owner's, the others lead from it to an authority. Empty when there is none,
// or one of them is damaged.
std::vector<std::shared_ptr<x509_st>> CertificatesIn(const std::string& pem);

// Null for one with a password, too.
std::shared_ptr<evp_pkey_st> KeyIn(const std::string& pem);

// Whether they hold a certificate and its key.
bool IsKeyOf(const std::string& certificate_pem, const std::string& key_pem);

}  // namespace ringmaster
