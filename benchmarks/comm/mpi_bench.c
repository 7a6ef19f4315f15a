// SPDX-License-Identifier: Apache-2.0
// The same measurement as comm_bench.cc over Open MPI: mpi_bench BYTES,BYTES,... ITERATIONS
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int Compare(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  if (argc != 3) MPI_Abort(MPI_COMM_WORLD, 2);
  int rank, size;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  const int iterations = atoi(argv[2]);
  char reduce[4096] = "", gather[4096] = "";
  for (char* text = strtok(argv[1], ","); text != NULL; text = strtok(NULL, ",")) {
    const long bytes = atol(text);
    const int count = (int)(bytes / 4);
    int repeats = bytes <= 65536 ? iterations : iterations / 10;
    if (repeats < 20) repeats = 20;
    float* values = malloc(bytes);
    float* sums = malloc(bytes);
    for (int i = 0; i < count; ++i) values[i] = 1.0f;
    double* micros = malloc(sizeof(double) * repeats);
    for (int kind = 0; kind < 2; ++kind) {
      for (int i = -(repeats / 10 + 1); i < repeats; ++i) {
        const double begin = MPI_Wtime();
        if (kind == 0) {
          MPI_Allreduce(values, sums, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        } else {
          MPI_Allgather(values, count / size, MPI_FLOAT, sums, count / size, MPI_FLOAT,
                        MPI_COMM_WORLD);
        }
        if (i >= 0) micros[i] = (MPI_Wtime() - begin) * 1e6;
      }
      qsort(micros, repeats, sizeof(double), Compare);
      char* out = kind == 0 ? reduce : gather;
      sprintf(out + strlen(out), "%s\"%ld\": %.3f", out[0] ? ", " : "", bytes, micros[repeats / 2]);
    }
    free(values);
    free(sums);
    free(micros);
  }
  if (rank == 0) printf("{\"all_reduce\": {%s}, \"all_gather\": {%s}}\n", reduce, gather);
  MPI_Finalize();
  return 0;
}
