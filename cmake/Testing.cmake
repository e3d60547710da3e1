# ringmaster_test(NAME SRCS ... DEPS ... [LABELS unit] [TIMEOUT s] [ARGS ...]): one GoogleTest program, one ctest entry.
# Labels: unit (fast, no processes), conformance, integration (real processes), simulation, docs.
find_package(GTest REQUIRED)

# What the sanitizers are told. A test that links torch has uninstrumented code on its threads, and torch's own findings
# in its reports: LibTorch::cpu says so to whatever links it (RINGMASTER_LINKS_TORCH); all other tests are held to
# everything the sanitizer sees.
set(sanitizer_environment
  "UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1"
  "LSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/lsan.supp:print_suppressions=0")
set(tsan_torch "ignore_noninstrumented_modules=1:suppressions=${CMAKE_SOURCE_DIR}/tests/tsan.supp")

function(ringmaster_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SRCS;DEPS;LABELS;ARGS" ${ARGN})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest_main ringmaster_options)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
  add_test(NAME ${name} COMMAND ${name} ${ARG_ARGS})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT}
    ENVIRONMENT "OMP_NUM_THREADS=2;UCX_LOG_LEVEL=error;${sanitizer_environment};TSAN_OPTIONS=halt_on_error=1:$<$<BOOL:$<TARGET_PROPERTY:${name},RINGMASTER_LINKS_TORCH>>:${tsan_torch}>")
endfunction()

# ringmaster_script_test(NAME COMMAND script args... [LABELS docs] [TIMEOUT s]): a Python unittest, one ctest entry. It
# finds the Python modules that deploy/local/setup --tests installed, and the modules beside it.
find_package(Python3 REQUIRED COMPONENTS Interpreter)

function(ringmaster_script_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "COMMAND;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_test(NAME ${name} COMMAND Python3::Interpreter ${ARG_COMMAND})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT}
    ENVIRONMENT "PYTHONPATH=${RINGMASTER_DEPS}/tests;PYTHONDONTWRITEBYTECODE=1;OMP_NUM_THREADS=2;UCX_LOG_LEVEL=error")
endfunction()
