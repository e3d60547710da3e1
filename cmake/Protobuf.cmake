# ringmaster_proto_library(NAME PROTOS a.proto ...): C++ messages and gRPC stubs, generated below the build folder;
# paths are relative to proto/, so that users of the files generate `ringmaster/v1/job...` in any language, and our code
# writes `#include "ringmaster/v1/job.pb.h"`.
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(absl CONFIG REQUIRED)

function(ringmaster_proto_library name)
  cmake_parse_arguments(ARG "" "" "PROTOS" ${ARGN})
  set(generated "")
  foreach(proto IN LISTS ARG_PROTOS)
    get_filename_component(dir "${proto}" DIRECTORY)
    get_filename_component(stem "${proto}" NAME_WE)
    set(out "${CMAKE_BINARY_DIR}/proto/${dir}/${stem}")
    add_custom_command(
      OUTPUT "${out}.pb.cc" "${out}.pb.h" "${out}.grpc.pb.cc" "${out}.grpc.pb.h"
      COMMAND protobuf::protoc --cpp_out "${CMAKE_BINARY_DIR}/proto" --grpc_out "${CMAKE_BINARY_DIR}/proto"
              --plugin=protoc-gen-grpc=$<TARGET_FILE:gRPC::grpc_cpp_plugin>
              -I "${CMAKE_SOURCE_DIR}/proto" "${CMAKE_SOURCE_DIR}/proto/${proto}"
      DEPENDS "${CMAKE_SOURCE_DIR}/proto/${proto}" protobuf::protoc
      VERBATIM)
    list(APPEND generated "${out}.pb.cc" "${out}.grpc.pb.cc")
  endforeach()
  add_library(${name} STATIC ${generated})
  target_include_directories(${name} PUBLIC "${CMAKE_BINARY_DIR}/proto")
  target_link_libraries(${name} PUBLIC gRPC::grpc++ protobuf::libprotobuf ringmaster_sanitizer)
endfunction()
