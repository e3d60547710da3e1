# ringmaster_test(NAME SRCS ... DEPS ... [LABELS unit] [TIMEOUT s] [ARGS ...] [UNINSTRUMENTED]): one GoogleTest program,
# one ctest entry.
# Labels: unit (fast, no processes), conformance, integration (real processes, or minutes), simulation, docs.
find_package(GTest REQUIRED)

# What the sanitizers are told. Torch, gRPC and UCX are not instrumented: of a test that runs their threads the findings
# inside their modules are left out. LibTorch::cpu says so to whatever links it (RINGMASTER_LINKS_TORCH), a test of gRPC
# streams by UNINSTRUMENTED; all other tests are held to everything that tests/tsan.supp does not name. OpenMP's runtime
# hides its order, so tests run on one thread of it; UCX's hooks of the memory functions would call the sanitizer on
# threads that it has left. An allocation that cannot be met fails, as it does without a sanitizer: tests run out of
# memory on purpose.
set(sanitizer_environment
  "ASAN_OPTIONS=allocator_may_return_null=1"
  "UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1"
  "LSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/lsan.supp:print_suppressions=0")
set(tsan_options "halt_on_error=1:allocator_may_return_null=1:suppressions=${CMAKE_SOURCE_DIR}/tests/tsan.supp")
set(openmp_threads 2)
set(slower 1)
set(tsan_order "")
if(RINGMASTER_SANITIZER STREQUAL "thread")
  set(openmp_threads 1)
  set(slower 4)
  list(APPEND sanitizer_environment "UCX_MEM_EVENTS=n")
  set(tsan_order tsan_order)
  add_subdirectory(tests/testing)
elseif(RINGMASTER_SANITIZER)
  set(slower 3)
endif()

function(ringmaster_test name)
  cmake_parse_arguments(ARG "UNINSTRUMENTED" "TIMEOUT" "SRCS;DEPS;LABELS;ARGS" ${ARGN})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  math(EXPR ARG_TIMEOUT "${ARG_TIMEOUT} * ${slower}")
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest_main ${tsan_order}
    ringmaster_options)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
  add_test(NAME ${name} COMMAND ${name} ${ARG_ARGS})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT}
    ENVIRONMENT "OMP_NUM_THREADS=${openmp_threads};UCX_LOG_LEVEL=error;${sanitizer_environment};TSAN_OPTIONS=${tsan_options}:$<$<OR:$<BOOL:${ARG_UNINSTRUMENTED}>,$<BOOL:$<TARGET_PROPERTY:${name},RINGMASTER_LINKS_TORCH>>>:ignore_noninstrumented_modules=1>")
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
