# Runs at install time (cmake/InstallTree.cmake): copies the libraries that `programs` and `ucx_modules` need, except
# those that match `not_carried`, to `prefix`/lib, and the licences of their packages to share/doc/ringmaster/licences.
cmake_policy(VERSION 3.25)

file(GET_RUNTIME_DEPENDENCIES
  EXECUTABLES ${programs}
  MODULES ${ucx_modules}
  PRE_EXCLUDE_REGEXES ${not_carried}
  RESOLVED_DEPENDENCIES_VAR libraries
  UNRESOLVED_DEPENDENCIES_VAR missing)
if(missing)
  message(FATAL_ERROR "not found, so not carried: ${missing}")
endif()

set(carried "")
foreach(library IN LISTS libraries ucx_modules)
  get_filename_component(name "${library}" NAME)
  file(REAL_PATH "${library}" file)
  if(library IN_LIST ucx_modules)
    set(destination "${prefix}/lib/ucx")
  else()
    set(destination "${prefix}/lib")
  endif()
  file(MAKE_DIRECTORY "${destination}")
  file(COPY_FILE "${file}" "${destination}/${name}")
  file(RPATH_REMOVE FILE "${destination}/${name}")
  list(APPEND carried "${file}")
endforeach()

# Which package a file is from; one without a package (built by hand) has no licence here either.
find_program(dpkg_query dpkg-query)
if(dpkg_query)
  # Some packages record /lib where the file is in /usr/lib now.
  set(recorded ${carried})
  list(TRANSFORM recorded REPLACE "^/usr" "")
  execute_process(COMMAND "${dpkg_query}" --search ${carried} ${recorded} OUTPUT_VARIABLE owners ERROR_QUIET)
  string(REGEX MATCHALL "(^|\n)[^:, \n]+" packages "${owners}")
  list(TRANSFORM packages STRIP)
  list(REMOVE_DUPLICATES packages)
  foreach(package IN LISTS packages)
    if(EXISTS "/usr/share/doc/${package}/copyright")
      file(MAKE_DIRECTORY "${prefix}/share/doc/ringmaster/licences")
      file(COPY_FILE "/usr/share/doc/${package}/copyright" "${prefix}/share/doc/ringmaster/licences/${package}")
    endif()
  endforeach()
endif()
list(LENGTH carried count)
message(STATUS "Carried ${count} libraries")
