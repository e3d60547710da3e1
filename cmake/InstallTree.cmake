# The install tree: bin/ lib/ share/, to be copied to any place on any host that has LibTorch. It carries every shared
# library that our programs need except the C and C++ runtime, which are the host's, and LibTorch, which is found in
# lib/torch (a link to the `lib` folder of a torch 2.11.0 wheel, made on the host) or through LD_LIBRARY_PATH.
#
# Include before the targets are defined: it sets how they are linked. ringmaster_install_tree() comes after them.
set(CMAKE_INSTALL_BINDIR bin)
set(CMAKE_INSTALL_LIBDIR lib)
set(CMAKE_INSTALL_RPATH "$ORIGIN/../lib;$ORIGIN/../lib/torch")
# DT_RPATH instead of DT_RUNPATH: the carried libraries have no path of their own, and only an RPATH serves them too.
add_link_options(-Wl,--disable-new-dtags)

set(not_carried
  "^ld-linux" "^lib(c|m|dl|rt|pthread|resolv|util|gcc_s|stdc\\+\\+|gomp)\\.so"
  "^libtorch" "^libc10" "^libcuda" "^libcudart" "^libcupti" "^libnccl" "^libringmaster")

# PROGRAMS: targets whose libraries are carried. The UCX modules are loaded by name at run time, from the folder ucx
# beside libucs.so.
function(ringmaster_install_tree)
  cmake_parse_arguments(ARG "" "" "PROGRAMS" ${ARGN})
  pkg_get_variable(ucx_libdir ucx libdir)
  file(GLOB ucx_modules "${ucx_libdir}/ucx/libuct_*.so.0")
  set(programs "")
  foreach(program IN LISTS ARG_PROGRAMS)
    list(APPEND programs "$<TARGET_FILE:${program}>")
  endforeach()
  install(CODE "
    set(prefix \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}\")
    set(programs \"${programs}\")
    set(ucx_modules \"${ucx_modules}\")
    set(not_carried [==[${not_carried}]==])
    include(\"${CMAKE_SOURCE_DIR}/cmake/install_libraries.cmake\")")
  install(DIRECTORY "${CMAKE_SOURCE_DIR}/proto/" DESTINATION share/ringmaster/proto FILES_MATCHING PATTERN "*.proto")
  foreach(folder kubernetes prometheus grafana)
    if(EXISTS "${CMAKE_SOURCE_DIR}/deploy/${folder}")
      install(DIRECTORY "${CMAKE_SOURCE_DIR}/deploy/${folder}" DESTINATION share/ringmaster/deploy)
    endif()
  endforeach()
  install(FILES README.md ARCHITECTURE.md CHANGELOG.md DESTINATION share/doc/ringmaster)
  install(DIRECTORY "${CMAKE_SOURCE_DIR}/docs" DESTINATION share/doc/ringmaster OPTIONAL)
endfunction()
