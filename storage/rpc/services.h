// The gRPC faces of the two stores. Each method lies in a file of its own (storage/rpc/<method>.cc) and only
// translates.
#pragma once

#include "retort/v1/artifact_service.grpc.pb.h"
#include "retort/v1/sample_service.grpc.pb.h"
#include "storage/artifact_store.h"
#include "storage/sample_store.h"
#include "storage/task_fence.h"

namespace retort::storage {

// Thread-safe. Owns neither; both must outlive it.
class SampleServiceImpl final : public v1::SampleService::Service {
 public:
  SampleServiceImpl(SampleStore* store, TaskFence* fence) : store_(store), fence_(fence) {}

  grpc::Status PrepareSampleSet(grpc::ServerContext* context, const v1::PrepareSampleSetRequest* request,
                                v1::PrepareSampleSetResponse* response) override;
  grpc::Status GetSampleSet(grpc::ServerContext* context, const v1::GetSampleSetRequest* request,
                            v1::GetSampleSetResponse* response) override;
  grpc::Status AcquireSamples(grpc::ServerContext* context, const v1::AcquireSamplesRequest* request,
                              v1::AcquireSamplesResponse* response) override;
  grpc::Status CommitTraces(grpc::ServerContext* context, const v1::CommitTracesRequest* request,
                            v1::CommitTracesResponse* response) override;
  grpc::Status SavePartials(grpc::ServerContext* context, const v1::SavePartialsRequest* request,
                            v1::SavePartialsResponse* response) override;
  grpc::Status ListTraces(grpc::ServerContext* context, const v1::ListTracesRequest* request,
                          grpc::ServerWriter<v1::ListTracesResponse>* writer) override;
  grpc::Status CreateManifest(grpc::ServerContext* context, grpc::ServerReader<v1::CreateManifestRequest>* reader,
                              v1::CreateManifestResponse* response) override;
  grpc::Status GetManifest(grpc::ServerContext* context, const v1::GetManifestRequest* request,
                           grpc::ServerWriter<v1::GetManifestResponse>* writer) override;
  grpc::Status GetStoreStats(grpc::ServerContext* context, const v1::GetStoreStatsRequest* request,
                             v1::GetStoreStatsResponse* response) override;
  grpc::Status ListSampleSets(grpc::ServerContext* context, const v1::ListSampleSetsRequest* request,
                              v1::ListSampleSetsResponse* response) override;
  grpc::Status ImportTraces(grpc::ServerContext* context, const v1::ImportTracesRequest* request,
                            v1::ImportTracesResponse* response) override;
  grpc::Status VerifyStore(grpc::ServerContext* context, const v1::VerifyStoreRequest* request,
                           v1::VerifyStoreResponse* response) override;

 private:
  SampleStore* const store_;
  TaskFence* const fence_;
};

// Thread-safe. Does not own `store`, which must outlive it.
class ArtifactServiceImpl final : public v1::ArtifactService::Service {
 public:
  explicit ArtifactServiceImpl(ArtifactStore* store) : store_(store) {}

  grpc::Status PutBlob(grpc::ServerContext* context, grpc::ServerReader<v1::PutBlobRequest>* reader,
                       v1::PutBlobResponse* response) override;
  grpc::Status GetBlob(grpc::ServerContext* context, const v1::GetBlobRequest* request,
                       grpc::ServerWriter<v1::GetBlobResponse>* writer) override;
  grpc::Status StatBlobs(grpc::ServerContext* context, const v1::StatBlobsRequest* request,
                         v1::StatBlobsResponse* response) override;
  grpc::Status PutArtifact(grpc::ServerContext* context, const v1::PutArtifactRequest* request,
                           v1::PutArtifactResponse* response) override;
  grpc::Status GetArtifact(grpc::ServerContext* context, const v1::GetArtifactRequest* request,
                           v1::GetArtifactResponse* response) override;

 private:
  ArtifactStore* const store_;
};

}  // namespace retort::storage
